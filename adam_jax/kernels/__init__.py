"""The program of a leaf as one kernel on TPUs: everything that knows of tiles."""
