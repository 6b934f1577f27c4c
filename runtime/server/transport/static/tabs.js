"use strict"; // one tab at a time; the address says which, so that it can be linked

const tabs = () => [...$("tabs").querySelectorAll("[role=tab]:not([hidden])")];

function showTab(chosen) {
  hideTip();
  for (const tab of $("tabs").querySelectorAll("[role=tab]")) {
    const isChosen = tab === chosen;
    tab.setAttribute("aria-selected", isChosen);
    tab.tabIndex = isChosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
}

function chooseTab(tab) {
  const name = tab.getAttribute("aria-controls");
  history.replaceState(null, "", name === "write" ? location.pathname + location.search : `#${name}`);
  showTab(tab);
}

/** The tab that the address names, or the first one. */
function showAddressedTab() {
  const named = tabs().find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash);
  showTab(named || tabs()[0]);
}

/** The name of the tab that is shown. */
const shownTab = () => $("tabs").querySelector("[aria-selected=true]").getAttribute("aria-controls");

function walkTabs(event) {
  const known = tabs();
  const at = known.indexOf(event.target);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: known.length - 1 }[event.key];
  if (at < 0 || next === undefined) return;
  event.preventDefault();
  const tab = known[(next + known.length) % known.length];
  chooseTab(tab);
  tab.focus();
}

$("tabs").addEventListener("click", (event) => event.target.matches("[role=tab]") && chooseTab(event.target));
$("tabs").addEventListener("keydown", walkTabs);
addEventListener("hashchange", showAddressedTab);
showAddressedTab();
