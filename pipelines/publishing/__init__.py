"""Publishing a finished folder on the Hub."""
