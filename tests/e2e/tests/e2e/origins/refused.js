// Everything that a page can send elsewhere, to each server of `given.servers`. It tells what came of it, by name.
const { servers, turn } = given;

const body = (appID) =>
  JSON.stringify({ appID, model: "stand-in", messages: [{ role: "user", content: "Hi" }] });
const json = { method: "POST", headers: { "content-type": "application/json" }, body: body("json") };

const fetched = (url, init) =>
  fetch(url, init).then(({ type, status }) => `${type} ${status}`, ({ name }) => name);

const event = (target, ...names) =>
  new Promise((resolve) => {
    for (const name of names) target.addEventListener(name, () => resolve(name), { once: true });
  });

const element = (name, attributes) => {
  const it = Object.assign(document.createElement(name), attributes);
  const came = event(it, "load", "error");
  document.body.append(it);
  return came;
};

// A frame's page is read only if it is of this origin.
const framed = async (src) => {
  const frame = document.createElement("iframe");
  frame.src = src;
  document.body.append(frame);
  await event(frame, "load");
  return frame.contentDocument ? frame.contentDocument.body.textContent : "unreadable";
};

// A script elsewhere does the fetches that are the hardest to stop, and says what came.
const tries = `Promise.all([
  fetched(at + "/llmchat/", json),
  fetched(at + "/llmchat/", { method: "POST", body: json.body }),
  fetched(at + "/llmchat/kept"),
])`;
const script = (at, answer) =>
  `const at = ${JSON.stringify(at)}, json = ${JSON.stringify(json)}, fetched = ${fetched};
   ${tries}.then(${answer});`;

const worker = async (at) => {
  const source = new Blob([script(at, "(it) => postMessage(it)")]);
  const { data } = await new Promise((resolve) => {
    new Worker(URL.createObjectURL(source)).onmessage = resolve;
  });
  return data.join();
};

const frame = async (attributes) => {
  const it = Object.assign(document.createElement("iframe"), attributes);
  const told = new Promise((resolve) => addEventListener("message", resolve, { once: true }));
  document.body.append(it);
  const { data, origin } = await told;
  return [origin, ...data].join();
};
const html = (at) => `<script>${script(at, '(it) => parent.postMessage(it, "*")')}</` + "script>";

const form = async (at) => {
  const target = document.createElement("iframe");
  target.name = `form of ${at}`;
  document.body.append(target);
  const form = Object.assign(document.createElement("form"), {
    method: "POST",
    action: `${at}/llmchat/`,
    enctype: "text/plain",
    target: target.name,
  });
  const [name, value] = body("form").split("stand-in");
  form.append(Object.assign(document.createElement("input"), { name: `${name}a`, value: `b${value}` }));
  document.body.append(form);
  const loaded = event(target, "load");
  form.submit();
  await loaded;
  return target.contentDocument ? "readable" : "unreadable";
};

const socket = (at) => {
  const it = new WebSocket(`${at.replace("http", "ws")}/llmchat/kept`);
  return event(it, "open", "error");
};

const source = async (url) => {
  const it = new EventSource(url, { withCredentials: true });
  const came = await event(it, "message", "error");
  return `${came} ${it.readyState === EventSource.CLOSED ? "closed" : "open"}`;
};

for (const at of servers) {
  await tell({
    json: await fetched(`${at}/llmchat/`, json),
    "with cookies": await fetched(`${at}/llmchat/`, { ...json, credentials: "include" }),
    plain: await fetched(`${at}/llmchat/`, { method: "POST", body: body("plain") }),
    "plain, unread": await fetched(`${at}/llmchat/`, {
      method: "POST",
      mode: "no-cors",
      body: body("unread"),
    }),
    beacon: navigator.sendBeacon(`${at}/llmchat/`, body("beacon")),
    read: await fetched(`${at}/llmchat/kept`),
    delete: await fetched(`${at}/llmchat/kept`, { method: "DELETE" }),
    stop: await fetched(`${at}${turn}/stop`, { method: "POST", mode: "no-cors" }),
    watch: await source(at + turn),
    worker: await worker(at),
    "sandboxed frame": await frame({ sandbox: "allow-scripts", srcdoc: html(at) }),
    "data: URL": await frame({ src: `data:text/html,${encodeURIComponent(html(at))}` }),
    image: await element("img", { src: `${at}/llmchat/kept` }),
    "image of a stream": await element("img", { src: at + turn }),
    script: await element("script", { src: `${at}/llmchat/kept` }),
    style: await element("link", { rel: "stylesheet", href: `${at}/llmchat/kept` }),
    "frame of a conversation": await framed(`${at}/llmchat/kept`),
    "frame of a turn": await framed(at + turn),
    form: await form(at),
    socket: await socket(at),
  });
}
