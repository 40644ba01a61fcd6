"""How the steps of the leaves are run. The one place where rules and formats meet."""
