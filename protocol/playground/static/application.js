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
  // The chosen model's name and its view; the address has them, so that a reload keeps them.
  chosen: "",
  view: "",
  // The workbench that is shown, and all that were, so that inputs and answers stay while the user looks at others.
  bench: null,
  benches: new Map(),
  poll: 0,
};

const readKey = () => keyInput.value.trim();

/** Show a message in place of a model, as an alert. */
function showMessage(title, ...details) {
  main.replaceChildren(element("div", { class: "card error", role: "alert" }, element("h1", {}, title), details));
}

/** Fetch the list of models with their states, and show it. */
async function refresh() {
  clearTimeout(state.poll);
  find("refresh").disabled = true;
  try {
    const key = readKey();
    const [{ answer: list }, index] = await Promise.all([
      call({ path: "v1/models" }, { key }),
      call({ path: "v2/repository/index", body: {} }, { key }).catch(() => ({ answer: [] })),
    ]);
    state.models = list.data.map((card) => ({
      ...card,
      versions: index.answer.filter((each) => each.name === card.id),
    }));
    showModels();
    if (state.models.some(({ versions }) => versions.some((each) => each.state === "LOADING"))) {
      state.poll = setTimeout(refresh, POLL_MILLISECONDS);
    }
  } catch (error) {
    state.models = [];
    state.bench?.stop();
    state.bench = null;
    find("models").replaceChildren(element("p", { class: "hint" }, "The list is not available."));
    showMessage("No list of models", element("p", {}, error.message), element("p", { class: "hint" }, advise(error)));
    if (error.status === 401) keyInput.focus();
  } finally {
    find("refresh").disabled = false;
  }
}

/** In words: what a model does, or why it does nothing. */
function describeState(model) {
  if (model.task) return TASK_NAMES[model.task] ?? model.task;
  const [version] = model.versions;
  if (version?.state === "LOADING") return "Loading …";
  return version?.reason ? `Not ready: ${version.reason}` : "Not ready";
}

function showModels() {
  const { models } = state;
  find("server").textContent = `${models.length} model${models.length === 1 ? "" : "s"} · ${location.host}`;
  if (models.length === 0) {
    find("models").replaceChildren(element("p", { class: "hint" }, "The server has no models."));
    showMessage("No models", element("p", {}, "Load one, then refresh the list."));
    return;
  }
  if (!models.some(({ id }) => id === state.chosen)) {
    state.chosen = (models.find(({ task }) => task) ?? models[0]).id;
  }
  const hadFocus = find("models").contains(document.activeElement);
  const name = newId();
  find("models").replaceChildren(
    element(
      "fieldset",
      { class: "choices" },
      element("legend", { class: "unseen" }, "Model"),
      models.map((model) =>
        element(
          "label",
          { class: model.task ? "choice" : "choice waiting" },
          element("input", {
            type: "radio",
            name,
            value: model.id,
            checked: model.id === state.chosen,
            onchange: () => choose(model.id, ""),
          }),
          element("span", { class: "name" }, model.id),
          element("span", { class: "task" }, describeState(model)),
        ),
      ),
    ),
  );
  find("models").querySelector(":checked").closest("label").scrollIntoView({ block: "nearest" });
  if (hadFocus) find("models").querySelector(":checked")?.focus();
  choose(state.chosen, state.view);
}

/** Show a model's view; without a name, its first one. */
function choose(id, viewId) {
  const model = state.models.find((each) => each.id === id);
  const views = listViews(model);
  const view = views.find((each) => each.id === viewId) ?? views[0];
  Object.assign(state, { chosen: id, view: view?.id ?? "" });
  const address = new URLSearchParams({ model: id, ...(views.length > 1 ? { view: view.id } : {}) });
  history.replaceState(null, "", `#${address}`);
  document.title = `${id} · Playground`;
  const key = `${state.view}\n${model.task}\n${id}`;
  if (view && !state.benches.has(key)) state.benches.set(key, createBench(model, view, readKey, onUnauthorized));
  const bench = view ? state.benches.get(key) : null;
  if (state.bench !== bench) state.bench?.stop();
  state.bench = bench;
  if (bench && main.contains(bench.element)) return;
  main.replaceChildren(
    element(
      "div",
      { class: "about" },
      element("h1", {}, id),
      element("p", { class: "facts" }, describeModel(model)),
      views.length > 1 ? segments("What to do", views, view.id, (chosen) => choose(id, chosen)) : null,
    ),
    bench ? bench.element : describeMissing(model),
  );
}

function describeModel(model) {
  const ready = model.versions.filter((each) => each.state === "READY").map((each) => each.version);
  const facts = [describeState(model)];
  if (model.max_model_len) facts.push(`at most ${model.max_model_len} tokens`);
  if (model.versions.length > 1) facts.push(`versions ${ready.join(", ") || "none"} ready, the highest answers`);
  if (model.root && model.root !== model.id) facts.push(`another name of ${model.root}`);
  return facts.join(" · ");
}

function describeMissing(model) {
  const reason = model.task
    ? "This page has no view for the model. “All calls” lists its calls."
    : "The model answers no requests now. Refresh the list once it is loaded.";
  return element("p", { class: "card empty" }, reason);
}

function onUnauthorized() {
  keyInput.focus();
}

function setTheme(theme) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  stored.write("localStorage", THEME_NAME, theme === "auto" ? "" : theme);
}

function start() {
  const theme = stored.read("localStorage", THEME_NAME) || "auto";
  setTheme(theme);
  const themes = ["auto", "light", "dark"].map((id) => ({ id, title: id[0].toUpperCase() + id.slice(1) }));
  find("theme").append(segments("Colours", themes, theme, setTheme));
  find("docs").href = new URL("docs", SERVER_URL);
  keyInput.value = stored.read("sessionStorage", KEY_NAME);
  find("keep-key").checked = keyInput.value !== "";
  const keepKey = () => stored.write("sessionStorage", KEY_NAME, find("keep-key").checked ? readKey() : "");
  find("keep-key").addEventListener("change", keepKey);
  keyInput.addEventListener("input", () => {
    keepKey();
    state.bench?.updateCode();
  });
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    refresh();
  });
  keyInput.addEventListener("change", () => refresh());
  find("refresh").addEventListener("click", () => refresh());
  const address = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, { chosen: address.get("model") ?? "", view: address.get("view") ?? "" });
  refresh();
}

start();
