"""A trained classifier in use: on photographs, and as a file for others."""
