// Last of all scripts: the page has been drawn.
document.documentElement.dataset.ready = "true";
