"""One recipe per paper; the folder names the family."""
