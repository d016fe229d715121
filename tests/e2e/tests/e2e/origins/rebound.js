// The page's own name leads to llmchat by now, so that to the browser all is of one origin.
const body = JSON.stringify({
  appID: "app",
  model: "stand-in",
  messages: [{ role: "user", content: "Hi" }],
});
const code = async (url, init) => {
  const response = await fetch(url, init);
  if (!response.ok) return `${response.status} ${(await response.json()).code}`;
  await response.text();
  return "ok";
};

await tell([
  await code("/llmchat/", { method: "POST", headers: { "content-type": "application/json" }, body }),
  await code("/llmchat/", { method: "POST", body }),
  await code("/llmchat/kept"),
  await code(given.turn),
  await code("/llmchat/kept", { method: "DELETE" }),
]);
