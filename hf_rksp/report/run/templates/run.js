(function () {
  "use strict";
  var store = document.getElementById("frames");
  if (!store) return;
  var movie = JSON.parse(store.textContent), last = movie.steps.length - 1;
  var DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", SHIFT = 2048, EDGE = 768;
  var slider = document.getElementById("step"), picker = document.getElementById("layer");
  var shown = document.getElementById("at"), play = document.getElementById("play"), motion = document.getElementById("motion");
  var still = matchMedia("(prefers-reduced-motion: reduce)");
  var timer = 0, at = 0, layer = -1, value = [];
  for (var place = 0; place < 64; place++) value[DIGITS.charCodeAt(place)] = place;

  function all(selector, from) { return Array.prototype.slice.call((from || document).querySelectorAll(selector)); }
  function step(number) { return number.toLocaleString("en-US"); }
  function make(name, kind, parent) {
    var made = document.createElementNS("http://www.w3.org/2000/svg", name);
    if (kind) made.setAttribute("class", kind);
    return parent.appendChild(made);
  }

  // Two characters a coordinate. What lies on the frame of the drawing was outside of it, and becomes a square.
  function dots(code, mirrored) {
    var inside = "", outside = "";
    for (var i = 0; i < code.length; i += 4) {
      var x = value[code.charCodeAt(i)] * 64 + value[code.charCodeAt(i + 1)] - SHIFT;
      var y = value[code.charCodeAt(i + 2)] * 64 + value[code.charCodeAt(i + 3)] - SHIFT;
      var dot = "M" + x + " " + y + "h0" + (mirrored && y ? "M" + x + " " + -y + "h0" : "");
      if (Math.abs(x) >= EDGE || Math.abs(y) >= EDGE) outside += dot; else inside += dot;
    }
    return [inside, outside];
  }

  var planes = all("[data-run]").map(function (card) {
    var run = movie.runs[card.dataset.run], clouds = card.querySelector(".clouds");
    var marks = movie.layers.map(function (name, place) {
      var group = make("g", "pts " + movie.shades[place], clouds);
      make("title", "", group).textContent = name;
      var pair = [make("path", "", group), make("path", "far", group)];
      pair[1].setAttribute("stroke-width", 18);
      return { group: group, paths: pair };
    });
    return { card: card, run: run, marks: marks, figure: card.querySelector(".stage .fig"), desc: card.querySelector("desc") };
  });

  // The profile that a run had last made at a step; none before its first.
  function frameAt(run, number) {
    var found = null;
    run.frames.forEach(function (frame) { if (frame.step <= number) found = frame; });
    return found;
  }

  // All modes, modes outside of the frame, spectral radius, the four masses: of one layer, or of all.
  function numbers(frame) {
    if (layer < 0) return frame.all;
    var entry = frame.layers.find(function (one) { return one[0] === layer; });
    return entry && entry.slice(3);
  }

  function when(plane, frame) {
    if (!frame) return "no profile yet";
    return "step " + step(frame.step) + (frame.step < movie.steps[at] ? (frame === plane.run.frames[plane.run.frames.length - 1] ? ", its last profile" : ", the profile before") : "");
  }

  function tell(plane, frame) {
    var counted = frame && numbers(frame), mean = layer < 0, list = plane.card.querySelector(".readout");
    var rows = !counted ? [["this layer", frame ? "not profiled" : "–"]] : [
      [mean ? "near-unit mass, mean" : "near-unit mass", counted[3]],
      [mean ? "spectral radius, largest" : "spectral radius", counted[2]],
      [mean ? "expansive mass, mean" : "expansive mass", counted[4]],
      [mean ? "intermediate mass, mean" : "intermediate mass", counted[5]],
      [mean ? "contractive mass, mean" : "contractive mass", counted[6]],
      ["modes", step(counted[0])], ["of them outside the frame", step(counted[1])]];
    if (!frame) rows = [["no profile yet", "–"]];
    list.textContent = "";
    rows.forEach(function (row) {
      var pair = document.createElement("div");
      pair.appendChild(document.createElement("dt")).textContent = row[0];
      pair.appendChild(document.createElement("dd")).textContent = row[1];
      list.appendChild(pair);
    });
    plane.card.querySelector(".shown").textContent = when(plane, frame);
    var said = !frame || !counted ? when(plane, frame) : rows.slice(0, 2).map(function (row) { return row.join(" "); }).join(", ");
    plane.desc.textContent = when(plane, frame) + ". " + said;
    return (planes.length > 1 ? plane.run.name + ": " : "") + said;
  }

  function draw(plane) {
    var frame = frameAt(plane.run, movie.steps[at]);
    if (plane.frame !== frame) {
      plane.frame = frame;
      plane.marks.forEach(function (mark) { mark.paths.forEach(function (path) { path.setAttribute("d", ""); }); });
      (frame ? frame.layers : []).forEach(function (entry) {
        var paths = plane.marks[entry[0]].paths, code = dots(entry[2], entry[1]), total = entry[3];
        paths[0].setAttribute("d", code[0]);
        paths[1].setAttribute("d", code[1]);
        paths[0].setAttribute("stroke-width", 4 * (total <= 100 ? 3.6 : total <= 400 ? 2.6 : 1.9));
      });
    }
    plane.figure.classList.toggle("one", layer >= 0);
    plane.marks.forEach(function (mark, place) { mark.group.classList.toggle("on", place === layer); });
    return tell(plane, frame);
  }

  var cursors = all(".cursor[data-span]").map(function (mark) {
    var about = mark.dataset, room = about.right - about.left, steps = about.high - about.low;
    return {
      mark: mark,
      show: function () {
        var x = Number(about.left) + room * (movie.steps[at] - about.low) / steps;
        mark.setAttribute("d", "M" + x.toFixed(1) + " " + about.span);
      },
      pick: function (x) { return nearest(Number(about.low) + steps * (x - about.left) / room); }
    };
  });
  var grids = all(".column[data-wide]").map(function (mark) {
    var about = mark.dataset, wide = Number(about.wide), high = Number(about.high), rows = Number(about.rows);
    return {
      mark: mark,
      show: function () {
        var x = Number(about.left) + at * wide, y = Number(about.top);
        if (layer >= 0) y += (rows - 1 - layer) * high;
        mark.setAttribute("d", "M" + x.toFixed(1) + " " + y.toFixed(1) + "h" + wide.toFixed(1) + "v" + (high * (layer < 0 ? rows : 1)).toFixed(1) + "h" + (-wide).toFixed(1) + "z");
      },
      cell: function (x, y) {
        var column = Math.floor((x - about.left) / wide), row = rows - 1 - Math.floor((y - about.top) / high);
        return column >= 0 && column <= last && row >= 0 && row < rows ? [column, row] : null;
      }
    };
  });

  function nearest(number) {
    var best = 0;
    movie.steps.forEach(function (one, place) { if (Math.abs(one - number) < Math.abs(movie.steps[best] - number)) best = place; });
    return best;
  }

  function show(place, chosen) {
    at = place;
    layer = chosen;
    slider.value = at;
    picker.value = layer;
    shown.textContent = "step " + step(movie.steps[at]);
    slider.setAttribute("aria-valuetext", [shown.textContent + (layer < 0 ? "" : ", " + movie.layers[layer])].concat(planes.map(draw)).join("; "));
    cursors.concat(grids).forEach(function (one) { one.show(); });
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    label();
  }
  function label() {
    motion.hidden = !still.matches;
    play.textContent = still.matches ? "Next" : timer ? "Pause" : "Play";
  }
  play.addEventListener("click", function () {
    if (still.matches) { show(at < last ? at + 1 : 0, layer); return; }
    if (timer) { stop(); return; }
    if (at === last) show(0, layer);
    timer = setInterval(function () {
      show(at + 1, layer);
      if (at >= last) stop();
    }, Math.max(120, Math.min(600, 12000 / (last + 1))));
    label();
  });
  still.addEventListener("change", stop);
  slider.addEventListener("input", function () { stop(); show(Number(slider.value), layer); });
  picker.addEventListener("change", function () { show(at, Number(picker.value)); });

  function point(event, figure) {
    var box = figure.getBoundingClientRect(), size = figure.viewBox.baseVal;
    return [(event.clientX - box.left) / box.width * size.width, (event.clientY - box.top) / box.height * size.height];
  }
  cursors.forEach(function (cursor) {
    var figure = cursor.mark.ownerSVGElement;
    figure.addEventListener("click", function (event) { stop(); show(cursor.pick(point(event, figure)[0]), layer); });
  });
  grids.forEach(function (grid, place) {
    var figure = grid.mark.ownerSVGElement, stage = figure.parentNode, tip = document.createElement("div");
    var run = movie.runs[place % movie.runs.length], radius = place >= movie.runs.length;
    tip.className = "tip";
    tip.hidden = true;
    stage.appendChild(tip);
    function read(event) {
      var spot = point(event, figure), cell = grid.cell(spot[0], spot[1]);
      tip.hidden = !cell;
      if (!cell) return;
      var frame = frameAt(run, movie.steps[cell[0]]);
      if (frame === run.frames[run.frames.length - 1] && frame && frame.step < movie.steps[cell[0]]) frame = null;
      var entry = frame && frame.layers.find(function (one) { return one[0] === cell[1]; });
      tip.textContent = movie.layers[cell[1]] + ", step " + step(frame ? frame.step : movie.steps[cell[0]]) + ": " + (entry ? entry[radius ? 5 : 6] : "not profiled");
      var x = spot[0] / figure.viewBox.baseVal.width * stage.clientWidth, y = spot[1] / figure.viewBox.baseVal.height * stage.clientHeight;
      tip.style.left = Math.max(0, Math.min(x - tip.offsetWidth / 2, stage.clientWidth - tip.offsetWidth)) + "px";
      tip.style.top = y - tip.offsetHeight - 12 + "px";
    }
    figure.addEventListener("pointermove", read);
    figure.addEventListener("pointerdown", read);
    figure.addEventListener("pointerleave", function () { tip.hidden = true; });
    figure.addEventListener("click", function (event) {
      var spot = point(event, figure), cell = grid.cell(spot[0], spot[1]);
      if (cell) { stop(); show(cell[0], cell[1]); }
    });
  });

  document.documentElement.classList.add("live");
  play.hidden = slider.disabled = last === 0;
  label();
  show(0, -1);
})();
