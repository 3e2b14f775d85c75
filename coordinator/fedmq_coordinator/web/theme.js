// Before anything is drawn: the theme that was chosen here, if one was.
(() => {
  "use strict";
  document.documentElement.classList.add("has-script");
  let theme = null;
  try {
    theme = localStorage.getItem("fedmq-theme");
  } catch {
    return; // storage is off: the system's choice holds
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
