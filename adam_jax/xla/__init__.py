"""What XLA has to be told: a file per habit, with the symptom and its figure."""
