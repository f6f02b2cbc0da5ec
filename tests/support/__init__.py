"""What tests start for themselves: servers that are real, on ports the system chose."""
