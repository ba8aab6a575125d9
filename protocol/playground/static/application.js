// The page: the list of models, the chosen model's views, and the key.

const TASK_NAMES = {
  fill_mask: "Fill-mask",
  question_answering: "Question answering",
  sequence_classification: "Text classification",
  sparse_embedding: "Sparse embedding",
  text2text_generation: "Text to text",
  text_embedding: "Text embedding",
  text_generation: "Text generation",
  text_ranking: "Text ranking",
  token_classification: "Token classification",
  zero_shot_classification: "Zero-shot classification",
};
const KEY_NAME = "playground.key";
const THEME_NAME = "playground.theme";
const POLL_MILLISECONDS = 2000;
const LIST_TIMEOUT_MILLISECONDS = 15_000;
const FADE_PIXELS = 28;

const find = (id) => document.getElementById(id);
const main = find("main");
const keyInput = find("key");
const announce = (text) => {
  find("announcement").textContent = text;
};

/** What is kept in a storage of the browser, which may be closed to this page. */
const stored = {
  read(storage, name) {
    try {
      return window[storage].getItem(name) ?? "";
    } catch {
      return "";
    }
  },
  write(storage, name, value) {
    try {
      if (value) window[storage].setItem(name, value);
      else window[storage].removeItem(name);
    } catch {
      // The page works without.
    }
  },
};

const state = {
  models: [],
  // The names of the chosen model and its view, as in the address.
  chosen: { model: "", view: "" },
  // By model, task and views: what `main` shows of it, so that inputs and answers stay while the user looks at others.
  modelPages: new Map(),
  // Aborts the request for the list that is under way.
  loading: null,
  poll: 0,
};

const readKey = () => keyInput.value.trim();

/** Tell something below the list of models; screen readers say it once, also if a poll brings it again. */
function tellOfList(text) {
  const line = find("list-problem");
  if (line.textContent !== text) line.textContent = text;
}

/** Show a message in place of a model, as an alert. */
function showMessage(title, ...details) {
  document.title = "Playground";
  main.replaceChildren(element("div", { class: "card error", role: "alert" }, element("h1", {}, title), details));
}

/**
 * The server's models, each with the states of its versions: the last ones known where the server does not tell them.
 *
 * @throws CallError, or AbortError
 */
async function fetchModels(signal) {
  const get = (request) => call(request, { key: readKey(), signal, timeout: LIST_TIMEOUT_MILLISECONDS });
  const [{ answer: list }, index] = await Promise.all([
    get({ path: "v1/models" }),
    get({ path: "v2/repository/index", body: {} }).then(({ answer }) => answer, () => null),
  ]);
  if (!Array.isArray(list?.data) || list.data.some((card) => typeof card?.id !== "string")) {
    throw new CallError("The server's list of models has an unknown format.", NOT_UNDERSTOOD);
  }
  const findVersions = (id) =>
    Array.isArray(index)
      ? index.filter(({ name }) => name === id)
      : (state.models.find((model) => model.id === id)?.versions ?? []);
  return list.data.map((card) => ({ ...card, versions: findVersions(card.id) }));
}

/** Fetch the models and show them; a later call takes the place of an earlier one. */
async function refresh() {
  clearTimeout(state.poll);
  state.loading?.abort();
  const loading = new AbortController();
  state.loading = loading;
  find("models").setAttribute("aria-busy", "true");
  if (state.models.length === 0) tellOfList("Loading …");
  try {
    const models = await fetchModels(loading.signal);
    if (state.loading === loading) showModels(models);
  } catch (error) {
    if (state.loading !== loading) return;
    const isCall = error instanceof CallError;
    const advice = "Reload the page. It needs a browser of 2024 or later.";
    showListError(isCall ? error : new CallError("This page cannot show the list.", { advice }));
    if (!isCall) throw error;
  } finally {
    if (state.loading === loading) {
      state.loading = null;
      find("models").setAttribute("aria-busy", "false");
      // Also after an error: a server that loads a model may be slow.
      if (state.models.some(isLoading)) state.poll = setTimeout(refresh, POLL_MILLISECONDS);
    }
  }
}

function showListError(error) {
  const isFirst = !main.querySelector("h1");
  const needsKey = error.status === 401;
  if (needsKey) find("key-details").open = true;
  if (state.models.length && !isFirst && !needsKey) {
    // The user works on with the models that were there.
    tellOfList(`Not refreshed: ${error.message}`);
    return;
  }
  state.models = [];
  showChoices();
  find("server").textContent = "";
  tellOfList("The list is not available.");
  const title = needsKey ? "This server asks for a key" : "No list of models";
  showMessage(title, element("p", {}, error.message), element("p", { class: "hint" }, advise(error)));
  if (isFirst && needsKey) keyInput.focus();
}

function showModels(models) {
  state.models = models;
  find("server").textContent = `${models.length} model${models.length === 1 ? "" : "s"} · ${location.host}`;
  for (const [key, modelPage] of state.modelPages) {
    if (models.some(({ id }) => id === modelPage.model.id)) continue;
    modelPage.workbenches.forEach((workbench) => workbench.stop());
    state.modelPages.delete(key);
  }
  tellOfList("");
  showChoices();
  if (models.length === 0) showMessage("No models", element("p", {}, "Load one, then refresh the list."));
  else select(state.chosen, "replaceState");
}

/** Whether one of a model's versions is being loaded. */
function isLoading({ versions }) {
  return versions.some((version) => version.state === "LOADING");
}

/** In words: what a model does, or why it does nothing. */
function describeState(model) {
  if (model.task) return TASK_NAMES[model.task] ?? model.task;
  if (isLoading(model)) return "Loading …";
  const reason = model.versions[0]?.reason;
  return reason ? `Not ready: ${reason}` : "Not ready";
}

/** Show the list of models: radio buttons, and, in narrow windows, a menu. */
function showChoices() {
  const { models } = state;
  const [list, menu] = [find("choices"), find("menu")];
  const names = JSON.stringify(models.map(({ id }) => id));
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    const focused = list.contains(document.activeElement) ? document.activeElement.value : null;
    list.replaceChildren(
      element("legend", { class: "unseen" }, "Model"),
      ...models.map(({ id }) =>
        element(
          "label",
          { class: "choice", title: id },
          element("input", {
            type: "radio", name: "model", value: id, onchange: () => select({ model: id }, "pushState"),
          }),
          element("span", { class: "name" }, id),
          element("span", { class: "task" }),
        ),
      ),
    );
    menu.replaceChildren(...models.map(({ id }) => element("option", { value: id })));
    if (focused !== null) [...list.querySelectorAll("input")].find(({ value }) => value === focused)?.focus();
  }
  const labels = list.querySelectorAll("label");
  models.forEach((model, position) => {
    const words = describeState(model);
    labels[position].classList.toggle("waiting", !model.task);
    labels[position].querySelector(".task").textContent = words;
    menu.options[position].textContent = `${model.id} · ${words}`;
  });
  find("models").hidden = models.length === 0;
  fadeEdges();
}

/** Fade the list of models at the edges beyond which it goes on. */
function fadeEdges() {
  const list = find("choices");
  // Browsers that let a list spring back have negative positions.
  const fade = (hidden) => `${Math.max(0, Math.min(hidden, FADE_PIXELS))}px`;
  list.style.setProperty("--above", fade(list.scrollTop));
  list.style.setProperty("--below", fade(list.scrollHeight - list.clientHeight - list.scrollTop));
}

/** The model and the view in the page's address. */
function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  return { model: address.get("model") ?? "", view: address.get("view") ?? "" };
}

/** Write the chosen model and view into the address, so that a reload keeps them. `change` is a method of `history`. */
function writeAddress({ model, view }, change) {
  const address = `#${new URLSearchParams(view ? { model, view } : { model })}`;
  if (address !== location.hash) history[change](null, "", address);
}

/** Choose a model and one of its views; its first where there is none of that name. */
function select({ model: name, view: viewName }, change) {
  const model = state.models.find(({ id }) => id === name) ?? state.models.find(({ task }) => task) ?? state.models[0];
  const views = listViews(model);
  const view = views.find(({ id }) => id === viewName) ?? views[0];
  // A model that is being loaded has no views yet: the one asked for stays.
  const awaited = views.length === 0 && model.id === name ? (viewName ?? "") : "";
  state.chosen = { model: model.id, view: views.length > 1 ? view.id : awaited };
  writeAddress(state.chosen, change);
  document.title = `${model.id} · Playground`;
  const position = state.models.indexOf(model);
  const radio = find("choices").querySelectorAll("input")[position];
  if (!radio.checked) {
    radio.checked = true;
    revealChoice(radio.closest("label"));
  }
  find("menu").selectedIndex = position;
  showModelPage(model, views, view);
}

/** Scroll the list, and only the list, to a model. */
function revealChoice(label) {
  const box = label.parentElement;
  const [top, bottom] = [label.offsetTop - FADE_PIXELS, label.offsetTop + label.offsetHeight + FADE_PIXELS];
  if (top < box.scrollTop) box.scrollTop = top;
  else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
}

/** Show a model with one of its views. What is shown already stays in the document, and so keeps the focus. */
function showModelPage(model, views, view) {
  const key = JSON.stringify([model.id, model.task, views.map(({ id }) => id)]);
  if (!state.modelPages.has(key)) state.modelPages.set(key, createModelPage(model, views));
  const modelPage = state.modelPages.get(key);
  modelPage.facts.textContent = describeModel(model);
  const radio = view && modelPage.about.querySelector(`input[value="${view.id}"]`);
  if (radio) radio.checked = true;
  const body = view ? modelPage.open(view) : modelPage.missing;
  if (main.firstChild !== modelPage.about) main.replaceChildren(modelPage.about, body);
  else if (main.lastChild !== body) main.lastChild.replaceWith(body);
}

/** The head of a model, and its workbenches by the names of their views. */
function createModelPage(model, views) {
  const facts = element("p", { class: "facts" });
  const workbenches = new Map();
  const chooseView = (view) => select({ model: model.id, view }, "pushState");
  return {
    model,
    facts,
    workbenches,
    about: element(
      "div",
      { class: "about" },
      element("h1", {}, model.id),
      facts,
      views.length > 1 ? segments("What to do", views, "", chooseView) : null,
    ),
    missing: element("p", { class: "card empty" }, describeMissing(model)),
    open(view) {
      if (!workbenches.has(view.id)) workbenches.set(view.id, createWorkbench(model, view, readKey, askForKey));
      return workbenches.get(view.id).element;
    },
  };
}

function describeModel(model) {
  const ready = model.versions.filter((each) => each.state === "READY").map((each) => each.version);
  const parts = [describeState(model)];
  if (model.max_model_len) parts.push(`at most ${model.max_model_len} tokens`);
  if (ready.length > 1) parts.push(`versions ${ready.join(", ")} ready, the highest answers`);
  else if (model.versions.length > 1 && ready.length) parts.push(`version ${ready[0]} answers`);
  if (model.root && model.root !== model.id) parts.push(`another name of ${model.root}`);
  return parts.join(" · ");
}

function describeMissing(model) {
  return model.task
    ? "This page has no view for the model. The API reference lists its calls."
    : "The model answers no requests now. Refresh the list once it is loaded.";
}

function askForKey() {
  find("key-details").open = true;
  keyInput.focus();
}

function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  stored.write("localStorage", THEME_NAME, theme === "auto" ? "" : theme);
}

function startTheme() {
  const theme = stored.read("localStorage", THEME_NAME) || "auto";
  const themes = ["auto", "light", "dark"].map((id) => ({ id, title: id[0].toUpperCase() + id.slice(1) }));
  setTheme(theme);
  find("theme").append(segments("Colours", themes, theme, setTheme));
}

function startKey() {
  keyInput.value = stored.read("sessionStorage", KEY_NAME);
  find("keep-key").checked = keyInput.value !== "";
  find("key-details").open = keyInput.value !== "";
  const keepKey = () => stored.write("sessionStorage", KEY_NAME, find("keep-key").checked ? readKey() : "");
  find("keep-key").addEventListener("change", keepKey);
  keyInput.addEventListener("input", () => {
    keepKey();
    state.modelPages.forEach(({ workbenches }) => workbenches.forEach((workbench) => workbench.updateCode()));
  });
  keyInput.addEventListener("change", refresh);
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    // Enter after a change has begun to refresh.
    if (!state.loading) refresh();
  });
}

function start() {
  startTheme();
  startKey();
  find("skip").addEventListener("click", (event) => {
    // The address has the model.
    event.preventDefault();
    main.focus();
  });
  find("reference").href = new URL("docs", SERVER_URL);
  find("choices").addEventListener("scroll", fadeEdges);
  new ResizeObserver(fadeEdges).observe(find("choices"));
  find("refresh").addEventListener("click", refresh);
  find("menu").addEventListener("change", (event) => select({ model: event.target.value }, "pushState"));
  window.addEventListener("hashchange", () => {
    state.chosen = readAddress();
    if (state.models.length) select(state.chosen, "replaceState");
  });
  state.chosen = readAddress();
  refresh();
}

start();
