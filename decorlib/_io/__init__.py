"""For every room: files written whole or not at all (``files``), plain data as one JSON text (``plain``), what to
multiply with (``products``).
"""
