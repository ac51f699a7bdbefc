"""Papers on how tokens see each other: attention, linear and hybrid."""
