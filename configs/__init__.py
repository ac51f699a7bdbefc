"""What to run. Recipes hold arithmetic only; the mechanisms are in moejax."""
