"use strict"; // requests to the server, and its streams

const NO_SERVER = "The server does not answer. It may have been stopped: start it again, and press";
const LOST = "The connection to the server was lost: it may have been stopped.";

/** An error of the connection, not of the request: what was asked may be asked again. */
class ConnectionError extends Error {}

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/** The reply to a request. An error has the server's reason, or says that there is no server; `button` asks again. */
async function ask(path, body, signal, button) {
  const gone = () => lose(`${NO_SERVER} ${button}.`);
  const reply = await fetch(path, { method: "POST", headers: headers(), body, signal }).catch(gone);
  if (reply.ok) return reply;
  const told = await reply.json().catch(gone); // of a proxy in between, say
  if (!told.error) return gone();
  throw new Error(told.error.message);
}

function lose(message) {
  throw new ConnectionError(message);
}

/** Server-sent events of a reply, read. A comment that tells the place in the queue is { queued }. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => lose(LOST));
    if (done) lose(LOST); // without its last event
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const place = /^: queued (\d+)$/.exec(part);
      if (place) yield { queued: Number(place[1]) };
      if (part.startsWith(":")) continue;
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** A place in the queue, in words. */
function inLine(place) {
  return place === 1 ? "Queued: this request is the next one." : `Queued: ${place - 1} ${place === 2 ? "request goes" : "requests go"} before this one.`;
}
