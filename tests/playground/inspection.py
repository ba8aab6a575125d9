"""Measures of a shown page: its contrasts, what keys reach, the names of its controls, and what does not fit."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page

# Roles of controls, which need a name that screen readers say.
CONTROLS = {
    "button", "checkbox", "combobox", "link", "listbox", "radio", "searchbox", "slider", "spinbutton", "switch", "textbox",
}  # fmt: skip

# What is behind an element, and the contrast of two colours. Colours are drawn on a canvas, since they may be written in any colour space.
_GROUND = """
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
    return { rgb: [red, green, blue], alpha: alpha / 255 };
  };
  const over = (top, alpha, below) => top.map((each, index) => alpha * each + (1 - alpha) * below[index]);
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.unshift(read(getComputedStyle(each).backgroundColor));
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    return layers.reduce((below, { rgb, alpha }) => over(rgb, alpha, below), dark ? [18, 18, 18] : [255, 255, 255]);
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((each) => each / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ratio = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
"""

# WCAG 2.2, success criterion 1.4.3.
_CONTRASTS = """async () => {
  await Promise.all(document.getAnimations().filter((each) => each instanceof CSSTransition).map((each) => each.finished));
GROUND
  const found = [];
  const measure = (element, text, color) => {
    const style = getComputedStyle(element);
    let opacity = 1;
    for (let each = element; each; each = each.parentElement) opacity *= Number(getComputedStyle(each).opacity);
    const below = behind(element);
    const { rgb, alpha } = read(color);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const value = ratio(over(rgb, alpha * opacity, below), below);
    found.push({ text: text.trim().slice(0, 40), ratio: Math.round(value * 100) / 100, needed: large ? 3 : 4.5 });
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const isDrawn = element.checkVisibility({ visibilityProperty: true }) && !element.closest("script, style, .unseen, :disabled");
    if (isDrawn && walker.currentNode.data.trim()) measure(element, walker.currentNode.data, getComputedStyle(element).color);
  }
  for (const element of document.querySelectorAll("input:not([type=radio], [type=checkbox]), textarea, select")) {
    if (!element.checkVisibility()) continue;
    measure(element, element.value, getComputedStyle(element).color);
    if (element.placeholder) measure(element, element.placeholder, getComputedStyle(element, "::placeholder").color);
  }
  return found;
}"""

# Radio buttons of one name are one stop.
_STOPS = """() => {
  const stops = [...document.querySelectorAll("a[href], button, input, textarea, select, summary, [tabindex]")].filter(
    (element) => element.tabIndex >= 0 && !element.disabled && element.checkVisibility({ visibilityProperty: true }),
  );
  const isStop = (element) => element.type !== "radio" || element.checked;
  return stops.filter(isStop).map(DESCRIBE);
}"""
_DESCRIBE = """(element) => `${element.tagName} ${element.id || element.name} ${(element.labels?.[0] ?? element).innerText.slice(0, 30)}`"""
_FOCUSED = """() => document.activeElement === document.body ? null : (DESCRIBE)(document.activeElement)"""

# Tab goes on from what had the focus last.
_TO_START = "() => { const { body } = document; body.tabIndex = -1; body.focus(); body.removeAttribute('tabindex'); }"

_IS_OUTLINED = """() => {
  const focused = document.activeElement;
  const shown = [focused, focused.parentElement, focused.nextElementSibling, ...(focused.labels ?? [])].filter(Boolean);
  return shown.some((each) => getComputedStyle(each).outlineStyle !== "none" && parseFloat(getComputedStyle(each).outlineWidth) > 1);
}"""

_MOVING = """() => [...document.querySelectorAll("*")].filter((element) => ["", "::before", "::after"].some((part) => {
  const { animationName, transitionDuration, scrollBehavior } = getComputedStyle(element, part || null);
  return animationName !== "none" || scrollBehavior === "smooth" || transitionDuration.split(",").some((each) => parseFloat(each) > 0);
})).map((element) => `${element.tagName}.${element.className}`)"""

# A control is shown by its own box, or, where that is hidden, by its label's.
_UNREACHABLE = """() => {
  const controls = [...document.querySelectorAll("a[href], button, input, textarea, select, summary")].filter(
    (element) => element.checkVisibility({ visibilityProperty: true }) && !element.matches(".skip"),
  );
  return controls.filter((control) => {
    const isHidden = ["radio", "checkbox"].includes(control.type) && control.labels.length;
    const shown = isHidden ? control.labels[0] : control;
    shown.scrollIntoView({ block: "center", inline: "nearest", behavior: "instant" });
    const { left, right, top, width, height } = shown.getBoundingClientRect();
    const isInside = width >= 12 && height >= 12 && left >= -0.5 && right <= document.documentElement.clientWidth + 0.5;
    const hit = document.elementFromPoint(left + width / 2, top + height / 2);
    return !(isInside && hit && (shown.contains(hit) || hit.contains(shown)));
  }).map(DESCRIBE);
}"""

# WCAG 2.2, success criterion 1.4.11.
_UNSEEN_BARS = """() => {
GROUND
  const bars = [...document.querySelectorAll(".bar")];
  return bars.filter((bar) => ratio(behind(bar), behind(bar.parentElement)) < 3).length;
}"""


def _with_description(script: str) -> str:
    return script.replace("DESCRIBE", _DESCRIBE)


def faint_texts(page: Page) -> list[str]:
    """The texts whose contrast with what is behind them is below 4.5, or 3 for large ones."""
    measured = page.evaluate(_CONTRASTS.replace("GROUND", _GROUND))
    assert measured
    return [f"{each['text']!r}: {each['ratio']}" for each in measured if each["ratio"] < each["needed"]]


def tab_stops(page: Page) -> list[str]:
    """What the key Tab should reach, in the document's order."""
    stops: list[str] = page.evaluate(_with_description(_STOPS))
    return stops


def press_tab_through(page: Page, most: int = 120) -> list[str]:
    """What the key Tab reaches from the page's start to its end."""
    page.evaluate(_TO_START)
    reached: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        focused: str | None = page.evaluate(_with_description(_FOCUSED))
        if focused is None:
            return reached
        reached.append(focused)
    raise AssertionError(f"Tab does not leave the page: {reached[-5:]}")


def unreachable_controls(page: Page) -> list[str]:
    """The controls that are cut off, covered, or outside the window even after scrolling down or up to them."""
    found: list[str] = page.evaluate(_with_description(_UNREACHABLE))
    return found


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    pixels: int = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return pixels


def accessibility_nodes(page: Page) -> list[dict[str, Any]]:
    """The tree that screen readers get, as a list of `role`, `name` and the other properties that are set."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        {
            "role": node["role"]["value"],
            "name": node.get("name", {}).get("value", ""),
            **{each["name"]: each["value"].get("value") for each in node.get("properties", [])},
        }
        for node in nodes
        if not node["ignored"]
    ]


def unmarked_stops(page: Page) -> list[str]:
    """The stops of the key Tab that look the same with the focus as without: no outline, theirs or their label's."""
    page.evaluate(_TO_START)
    unmarked: list[str] = []
    for _ in tab_stops(page):
        page.keyboard.press("Tab")
        if not page.evaluate(_IS_OUTLINED):
            unmarked.append(page.evaluate(_with_description(_FOCUSED)))
    return unmarked


def moving(page: Page) -> list[str]:
    """The elements that move, or that would at a change."""
    found: list[str] = page.evaluate(_MOVING)
    return found


def unseen_bars(page: Page) -> int:
    """How many bars have a contrast below 3 with what is behind them."""
    count: int = page.evaluate(_UNSEEN_BARS.replace("GROUND", _GROUND))
    return count
