"""HTTP transport: sockets, limits on clients, routes, the page."""
