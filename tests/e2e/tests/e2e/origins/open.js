// A page of another origin and a server without keys: it watches as it does its own.
const { at, turn } = given;

document.cookie = "session=mine";
const watch = (withCredentials) =>
  new Promise((resolve, reject) => {
    const events = new EventSource(at + turn, { withCredentials });
    events.onerror = () => reject("the stream failed");
    events.onmessage = ({ data, lastEventId }) => {
      const { message, done } = JSON.parse(data);
      if (done) events.close(resolve(lastEventId));
      else tell({ withCredentials, content: message.content });
    };
  });
const outcome = (init) =>
  fetch(at + turn, init).then(({ status }) => status, ({ name }) => name);
const body = JSON.stringify({
  appID: "cookies",
  model: "stand-in",
  messages: [{ role: "user", content: "Hi" }],
});

if (given.isAny) {
  await tell({
    without: await outcome({}),
    with: await outcome({ credentials: "include" }),
    // Sent without asking.
    prompt: await fetch(`${at}/llmchat/`, { method: "POST", body, credentials: "include", mode: "no-cors" }).then(
      ({ type }) => type,
    ),
  });
  await watch(false);
} else {
  await watch(false);
  await watch(true);
  await tell(await outcome({ credentials: "include" }));
}
