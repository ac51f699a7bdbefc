"""Papers on who goes to which expert, and on keeping the load even."""
