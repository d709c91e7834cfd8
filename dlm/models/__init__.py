"""Network families and their loading."""
