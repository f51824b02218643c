"""What every room may use: files written whole or not at all (``files``), and plain data as one JSON text (``plain``)."""
