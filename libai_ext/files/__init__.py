"""Opening untrusted files, anonymous files, and the user's cache folder."""
