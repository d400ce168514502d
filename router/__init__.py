"""The router: takes requests, chooses workers, keeps the token log, and writes the client's stream."""
