"""How files are opened that others may have made, and files that leave nothing."""
