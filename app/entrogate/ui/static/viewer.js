// The one thing that a page cannot do by itself: remember whether it is light or dark.
"use strict";
const button = document.getElementById("theme");
const dark = () =>
  document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
const kept = localStorage.getItem("theme");
if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
button.hidden = false;
show();
button.addEventListener("click", () => {
  const theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  show();
});
