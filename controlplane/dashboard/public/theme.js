// Sets the chosen theme before the first paint.
(() => {
  try {
    const theme = localStorage.getItem("skein.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is off: the system's choice holds.
  }
})();
