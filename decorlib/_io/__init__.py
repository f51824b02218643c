"""For every room: files written whole or not at all (``files``), and plain data as one JSON text (``plain``)."""
