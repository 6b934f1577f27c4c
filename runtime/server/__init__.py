"""An HTTP server with OpenAI's protocol: the one part of the package that opens a socket, and it only listens.

    request -> fields -> plan -> engine: scheduler -> reply

`fields` says what may be asked, `plan` makes rows of it, the `scheduler`'s thread decodes the rows of all requests
together, and `reply` writes what comes of them as OpenAI does. `listener` keeps clients within their bounds.

Its packages import each other in one direction: chat_templates < engine < openai < analysis < transport.
"""
