(function () {
  "use strict";
  var table = document.getElementById("all-layers");
  var rows = Array.prototype.slice.call(table.tBodies[0].rows);
  var slider = document.getElementById("layer");
  var chosen = document.getElementById("chosen");
  var readout = document.getElementById("readout");
  var clear = document.getElementById("clear");
  var hint = document.getElementById("hint");
  var heads = Array.prototype.slice.call(table.tHead.rows[1].cells);
  var charts = [];
  var means = readout.cloneNode(true).childNodes;

  function name(layer) { return rows[layer].cells[0].textContent.trim(); }

  // One layer is picked out everywhere at once: dots, marks, table row and the list beside the slider. -1 is none.
  function select(layer) {
    slider.value = layer + 1;
    chosen.textContent = layer < 0 ? "all layers" : name(layer);
    slider.setAttribute("aria-valuetext", chosen.textContent);
    rows.forEach(function (row, place) { row.classList.toggle("on", place === layer); });
    document.querySelectorAll(".fig [data-l]").forEach(function (mark) {
      mark.classList.toggle("on", Number(mark.dataset.l) === layer);
    });
    document.querySelectorAll('[data-kind="plane"] .fig').forEach(function (figure) {
      figure.classList.toggle("one", layer >= 0);
    });
    charts.forEach(function (chart) { chart.show(layer); });
    readout.textContent = "";
    if (layer < 0) means.forEach(function (node) { readout.append(node.cloneNode(true)); });
    if (layer >= 0) {
      heads.forEach(function (head, place) {
        if (!head.dataset.k) return;
        var pair = document.createElement("div"), term = document.createElement("dt"), value = document.createElement("dd");
        term.textContent = head.dataset.name;
        value.textContent = rows[layer].cells[place + 1].textContent;
        pair.append(term, value);
        readout.append(pair);
      });
    }
    clear.style.visibility = layer < 0 ? "hidden" : "visible";
    // The list keeps its largest height: a chart below it must not move away under the pointer that chose a layer.
    readout.style.minHeight = Math.max(Math.ceil(readout.getBoundingClientRect().height), parseFloat(readout.style.minHeight) || 0) + "px";
  }

  // A depth chart answers to pointer and arrow keys, and says its value to a screen reader as a slider does.
  function chart(stage) {
    var figure = stage.querySelector("svg"), marks = Array.prototype.slice.call(figure.querySelectorAll(".mark"));
    if (!marks.length) return;
    var box = figure.viewBox.baseVal, line = figure.querySelector(".cursor"), hit = document.createElement("div"), tip = document.createElement("div");
    hit.className = "hit";
    tip.className = "tip";
    tip.hidden = true;
    hit.tabIndex = 0;
    hit.setAttribute("role", "slider");
    hit.setAttribute("aria-label", stage.parentNode.querySelector("h3").textContent + ", choose a layer");
    hit.setAttribute("aria-valuemin", 1);
    hit.setAttribute("aria-valuemax", marks.length);
    hit.setAttribute("aria-valuenow", 1);
    stage.append(hit, tip);
    var at = -1, active = false;
    function text(layer) { return marks[layer].querySelector("title").textContent; }
    function show(layer) {
      at = layer;
      line.setAttribute("d", layer < 0 ? "" : "M" + marks[layer].dataset.x + " " + line.dataset.span);
      tip.hidden = layer < 0 || !active;
      if (layer < 0) return;
      hit.setAttribute("aria-valuenow", layer + 1);
      hit.setAttribute("aria-valuetext", text(layer));
      tip.textContent = text(layer);
      var x = marks[layer].dataset.x / box.width * stage.clientWidth;
      tip.style.left = Math.max(0, Math.min(x - tip.offsetWidth / 2, stage.clientWidth - tip.offsetWidth)) + "px";
      tip.style.top = -tip.offsetHeight + 4 + "px";
    }
    function nearest(event) {
      var place = hit.getBoundingClientRect(), x = (event.clientX - place.left) / place.width * box.width, best = 0;
      marks.forEach(function (mark, layer) {
        if (Math.abs(mark.dataset.x - x) < Math.abs(marks[best].dataset.x - x)) best = layer;
      });
      return best;
    }
    ["pointermove", "pointerdown"].forEach(function (kind) {
      hit.addEventListener(kind, function (event) {
        var layer = nearest(event);
        active = true;
        if (layer !== at || tip.hidden) select(layer);
      });
    });
    hit.addEventListener("pointerleave", function () { active = false; tip.hidden = true; });
    hit.addEventListener("focus", function () { active = hit.matches(":focus-visible"); if (active) select(Math.max(at, 0)); });
    hit.addEventListener("blur", function () { active = false; tip.hidden = true; });
    hit.addEventListener("keydown", function (event) {
      var last = marks.length - 1;
      var to = { ArrowRight: Math.min(at + 1, last), ArrowUp: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0),
        ArrowDown: Math.max(at - 1, 0), Home: 0, End: last, Escape: -1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      active = true;
      select(to);
    });
    charts.push({ show: show });
  }

  if (rows.length) {
    slider.hidden = hint.hidden = clear.hidden = false;
    table.classList.add("live");
    document.querySelectorAll('[data-kind="depth"] .stage').forEach(chart);
    slider.addEventListener("input", function () { select(slider.value - 1); });
    clear.addEventListener("click", function () { select(-1); slider.focus(); });
    rows.forEach(function (row, layer) {
      row.addEventListener("click", function () { select(row.classList.contains("on") ? -1 : layer); });
    });
    select(0);
    select(-1);
  }

  var copy = document.getElementById("copy");
  if (copy) {
    copy.hidden = false;
    copy.addEventListener("click", function () {
      var code = document.getElementById("command");
      function done(said) {
        copy.textContent = said;
        setTimeout(function () { copy.textContent = "Copy command"; }, 2000);
      }
      function mark() {
        var range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        done(document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
      }
      if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(function () { done("Copied"); }, mark);
      else mark();
    });
  }
})();
