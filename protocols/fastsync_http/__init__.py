"""The protocols `http` and `https`: files and index pages of web servers, to be read."""
