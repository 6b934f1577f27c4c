"""HTTP: sockets, limits, routes, the page."""
