// A page of the server's own, which a proxy serves together with it: one prompt, read as it comes.
const response = await fetch("/llmchat/", {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ appID: "app", model: "stand-in", messages: [{ role: "user", content: "Hi" }] }),
});
if (response.ok) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let read = {}; !read.done && !text.includes("\n\n"); text += read.value ?? "") read = await reader.read();
  await tell("the first event");
  try {
    for (let read = {}; !read.done; text += read.value ?? "") read = await reader.read();
    const [{ nextHopProtocol }] = performance.getEntriesByName(response.url);
    await tell({ protocol: nextHopProtocol, isDone: text.includes('"done":true') });
  } catch ({ name }) {
    await tell(name);
  }
} else {
  await tell({ status: response.status, ...(await response.json()) });
}
