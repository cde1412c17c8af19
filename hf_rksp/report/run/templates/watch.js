(function () {
  "use strict";
  // The page of the run stands in a frame, as it is on disk. A new one is made ready behind it and then takes its place.
  var every = 2000, main = document.getElementById("main"), line = document.querySelector(".watch");
  var state = document.getElementById("state"), step = document.getElementById("step"), ago = document.getElementById("ago");
  var trouble = document.getElementById("trouble");
  var shown = null, version = 0, coming = false, changed = 0;

  function complain(text) {
    if (trouble.textContent !== text) trouble.textContent = text;
    trouble.hidden = !text;
  }

  function tell(found) {
    var steps = (found.steps || []).filter(function (one) { return one !== null; });
    var text = steps.map(function (one) { return one.toLocaleString("en-US"); }).join(", ");
    if (text) step.textContent = (steps.length > 1 ? "steps " : "step ") + text;
    if (found.version !== version) changed = Date.now();
    var seconds = Math.round((Date.now() - changed) / 1000);
    state.textContent = steps.length ? "Following the run" : "Waiting for the run";
    ago.textContent = !steps.length || seconds < 10 ? "" : "nothing new for " +
      (seconds < 120 ? seconds + " s" : seconds < 7200 ? Math.round(seconds / 60) + " min" : Math.round(seconds / 3600) + " h");
    line.classList.toggle("quiet", seconds >= 60);
  }

  // Somebody plays the movie, or has marked text: a new page would take it away.
  function busy() {
    if (!shown) return false;
    var page = shown.contentDocument, play = page.getElementById("play"), marked = shown.contentWindow.getSelection();
    return (play && play.textContent === "Pause") || (marked && !marked.isCollapsed);
  }

  function carry(from, to) {
    var old = from.contentDocument, page = to.contentDocument;
    // By its words: it may also say how many rows there are.
    function words(one) { return one.textContent.replace(/[0-9,]+/g, ""); }
    var open = {};
    Array.prototype.forEach.call(old.querySelectorAll("details[open] > summary"), function (one) { open[words(one)] = true; });
    Array.prototype.forEach.call(page.querySelectorAll("details > summary"), function (one) {
      if (open[words(one)]) one.parentNode.open = true;
    });
    var slider = old.getElementById("step"), next = page.getElementById("step");
    var layer = old.getElementById("layer"), picker = page.getElementById("layer");
    if (slider && next) {
      // At the newest reading it stays there; the steps before it keep their places.
      next.value = slider.value === slider.max ? next.max : slider.value;
      next.dispatchEvent(new Event("input"));
    }
    if (layer && picker) {
      picker.value = layer.value;
      picker.dispatchEvent(new Event("change"));
    }
    to.contentWindow.scrollTo({ left: from.contentWindow.scrollX, top: from.contentWindow.scrollY, behavior: "instant" });
    return old.activeElement && old.activeElement.id;
  }

  function load(next) {
    coming = true;
    var frame = document.createElement("iframe");
    frame.title = "Page of the run";
    frame.className = "coming";
    frame.addEventListener("load", function () {
      coming = false;
      var page = frame.contentDocument;
      if (!page || !page.getElementById("main")) {
        frame.remove();
        return;
      }
      version = next;
      var focused = shown && document.activeElement === shown, at = shown ? carry(shown, frame) : "";
      frame.className = "";
      if (shown) shown.remove();
      shown = frame;
      document.title = page.title;
      if (focused) {
        frame.focus();
        var again = at && page.getElementById(at);
        if (again) again.focus({ preventScroll: true });
      }
    });
    frame.src = "page?version=" + next;
    main.appendChild(frame);
  }

  function poll() {
    fetch("state").then(function (answer) { return answer.json(); }).then(function (found) {
      complain(found.error || "");
      if (found.error) return;
      tell(found);
      if (found.version !== version && !coming && (found.steps || []).length && !busy()) load(found.version);
    }).catch(function () {
      state.textContent = "rksp watch has ended";
      ago.textContent = "";
    }).then(function () { setTimeout(poll, every); });
  }
  poll();
})();
