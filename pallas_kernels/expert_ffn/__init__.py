"""The feed-forward of the chosen experts, from tokens to tokens."""
