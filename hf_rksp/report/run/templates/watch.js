(function () {
  "use strict";
  // The page of the run stands in a frame, as it is on disk. A new one is made ready behind it and then takes its place.
  var every = 2000, main = document.getElementById("main"), line = document.querySelector(".watch");
  var state = document.getElementById("state"), step = document.getElementById("step"), ago = document.getElementById("ago");
  var trouble = document.getElementById("trouble"), hold = document.getElementById("hold");
  var shown = null, shownAs = "", refused = "", coming = false, missed = 0;

  function put(element, text) { if (element.textContent !== text) element.textContent = text; }
  function all(selector, from) { return Array.prototype.slice.call(from.querySelectorAll(selector)); }

  function complain(text) {
    put(trouble, text);
    trouble.hidden = !text;
  }

  function tell(found) {
    var runs = found.runs, begun = runs.filter(function (run) { return run.begun; });
    var steps = begun.map(function (run) { return run.step === null ? "no step yet" : run.step.toLocaleString("en-US"); });
    var ages = runs.filter(function (run) { return run.age !== null; }).map(function (run) { return run.age; });
    var age = ages.length ? Math.min.apply(null, ages) : null;
    put(state, begun.length ? (busy() ? "Updates held" : "Following the run") : "Waiting for the run");
    put(step, begun.length ? (steps.length > 1 ? "steps " : "step ") + steps.join(", ") : runs.map(function (run) { return run.path; }).join(", "));
    put(ago, age === null || age < 10 ? "" : "last line " + (age < 120 ? Math.round(age) + " s" : age < 7200 ? Math.round(age / 60) + " min" : Math.round(age / 3600) + " h") + " ago");
    line.classList.toggle("quiet", age !== null && age >= 60);
    complain(runs.map(function (run) { return run.error; }).filter(Boolean).concat(refused || []).join(" · "));
  }

  // Somebody has paused, plays the movie, or has marked text: a new page would take it away.
  function busy() {
    if (hold.getAttribute("aria-pressed") === "true") return true;
    if (!shown) return false;
    var page = shown.contentDocument, play = page.getElementById("play"), marked = shown.contentWindow.getSelection();
    return Boolean((play && play.textContent === "Pause") || (marked && !marked.isCollapsed));
  }
  hold.addEventListener("click", function () {
    var on = hold.getAttribute("aria-pressed") !== "true";
    hold.setAttribute("aria-pressed", String(on));
    put(hold, on ? "Resume updates" : "Pause updates");
  });

  // What an element is called: by its id, its label or its link, so that it is found in another copy of the page.
  function called(element) {
    if (!element || element === element.ownerDocument.body) return "";
    if (element.id) return "#" + CSS.escape(element.id);
    var label = element.getAttribute("aria-label"), href = element.getAttribute("href");
    if (label) return '[aria-label="' + CSS.escape(label) + '"]';
    if (href) return 'a[href="' + CSS.escape(href) + '"]';
    return "";
  }

  function carry(from, to) {
    var old = from.contentDocument, page = to.contentDocument;
    // By its words: it may also say how many rows there are.
    function words(one) { return one.textContent.replace(/[0-9,]+/g, ""); }
    var open = {};
    all("details[open] > summary", old).forEach(function (one) { open[words(one)] = true; });
    all("details > summary", page).forEach(function (one) { if (open[words(one)]) one.parentNode.open = true; });
    all(".scroll[aria-label]", old).forEach(function (box) {
      var again = page.querySelector(called(box));
      if (!again) return;
      again.scrollTop = box.scrollTop;
      again.scrollLeft = box.scrollLeft;
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
    return called(old.activeElement);
  }

  function load(as) {
    coming = true;
    var frame = document.createElement("iframe");
    frame.title = "Page of the run";
    frame.className = "coming";
    frame.addEventListener("load", function () {
      var page = frame.contentDocument;
      coming = false;
      shownAs = as;
      if (!page || !page.getElementById("main")) {
        refused = page && page.body ? page.body.textContent.trim() : "the page was not sent";
        frame.remove();
        return;
      }
      refused = "";
      var focused = shown && document.activeElement === shown, at = shown ? carry(shown, frame) : "";
      frame.className = "";
      if (shown) shown.remove();
      shown = frame;
      document.title = page.title;
      if (focused) {
        frame.focus();
        var again = at && page.querySelector(at);
        if (again) again.focus({ preventScroll: true });
      }
    });
    frame.src = "page?as=" + encodeURIComponent(as);
    main.appendChild(frame);
  }

  function poll() {
    fetch("state").then(function (answer) { return answer.json(); }).then(function (found) {
      missed = 0;
      tell(found);
      var as = found.server + "-" + found.version, begun = found.runs.some(function (run) { return run.begun && !run.error; });
      if (as !== shownAs && !coming && begun && !busy()) load(as);
    }, function () {
      missed += 1;
      if (missed > 1) put(state, "rksp watch does not answer");
    }).then(function () { setTimeout(poll, every); });
  }
  poll();
})();
