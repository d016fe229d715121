// An app on an origin that is allowed: all that it does with a key, and what it is refused.
const { at, token } = given;

const readable = ["x-turn-id", "location", "x-context", "idempotency-replayed", "retry-after"];
const authorization = `Bearer ${token}`;
const prompt = (appID, content = "Hi") => ({
  appID,
  model: "stand-in",
  messages: [{ role: "user", content }],
});
const post = (appID, headers) => ({
  method: "POST",
  headers: { "content-type": "application/json", authorization, ...headers },
  body: JSON.stringify(prompt(appID)),
});
const head = ({ status, headers }) => ({
  status,
  headers: readable.filter((name) => headers.has(name)),
});
const whole = async (url, init) => {
  const response = await fetch(url, init);
  const text = await response.text();
  return { ...head(response), text };
};
const code = async (url, init) => {
  const { text, ...head } = await whole(url, init);
  return { ...head, code: JSON.parse(text).code };
};

// It streams: the test lets Ollama go on only when it was told of the first event.
const key = { "idempotency-key": "one", "last-event-id": "" };
const response = await fetch(`${at}/llmchat/`, post("app", key));
const turn = response.headers.get("location");
const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
let text = "";
for (let read = {}; !read.done && !text.includes("\n\n"); text += read.value ?? "") read = await reader.read();
const limited = await code(`${at}/llmchat/`, post("app"));
await tell({ ...head(response), text, limited });
for (let read = {}; !read.done; text += read.value ?? "") read = await reader.read();
await tell(text);

const id = /id: (.*)\n/.exec(text)[1];
// Without a max-age, a browser remembers for 5 s what it may send.
await new Promise((resolve) => setTimeout(resolve, 6_000));
await tell({
  replay: await whole(`${at}/llmchat/`, post("app", { ...key, "last-event-id": id })),
  page: JSON.parse((await whole(`${at}/llmchat/app`, { headers: { authorization } })).text).messages.length,
  "another path": await code(`${at}/llmchat/a/b/c/d`, { headers: { authorization } }),
  "another turn": await code(`${at}${turn.slice(0, -12)}000000000000`, { headers: { authorization } }),
  "another method": await fetch(`${at}/llmchat/app`, { method: "PUT", headers: { authorization } }).catch(
    ({ name }) => name,
  ),
  "a wrong key": await code(`${at}/llmchat/`, post("app", { authorization: "Bearer wrong" })),
  "no key": await code(`${at}/llmchat/app`),
  malformed: await code(`${at}/llmchat/`, { ...post("app"), body: "{}" }),
  delete: (await whole(`${at}${turn}`, { method: "DELETE", headers: { authorization } })).status,
});
