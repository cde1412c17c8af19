(function () {
  "use strict";
  // Every constant and every number comes with the data; this script draws and moves, and measures nothing.
  var store = document.getElementById("frames");
  if (!store) return;
  var data = JSON.parse(store.textContent), last = data.steps.length - 1, moving = last >= 0;
  var at = 0, layer = -1, timer = 0, value = [];
  for (var place = 0; place < data.code.digits.length; place++) value[data.code.digits.charCodeAt(place)] = place;

  function all(selector, from) { return Array.prototype.slice.call((from || document).querySelectorAll(selector)); }
  function step(number) { return number.toLocaleString("en-US"); }
  function make(name, kind, parent) {
    var made = document.createElementNS("http://www.w3.org/2000/svg", name);
    if (kind) made.setAttribute("class", kind);
    return parent.appendChild(made);
  }
  function point(event, figure) {
    var box = figure.getBoundingClientRect(), size = figure.viewBox.baseVal;
    return [(event.clientX - box.left) / box.width * size.width, (event.clientY - box.top) / box.height * size.height];
  }
  function nearest(number) {
    var best = 0;
    data.steps.forEach(function (one, place) { if (Math.abs(one - number) < Math.abs(data.steps[best] - number)) best = place; });
    return best;
  }
  // Place of the last of rising numbers that is at most `number`; -1 before the first.
  function before(numbers, number) {
    var found = -1;
    numbers.forEach(function (one, place) { if (one <= number) found = place; });
    return found;
  }

  // Two characters per coordinate. What lies on the frame of the drawing was outside of it, and becomes a square.
  function dots(code, mirrored) {
    var inside = "", outside = "", base = data.code.digits.length, shift = data.code.shift, edge = data.plane.edge;
    for (var i = 0; i < code.length; i += 4) {
      var x = value[code.charCodeAt(i)] * base + value[code.charCodeAt(i + 1)] - shift;
      var y = value[code.charCodeAt(i + 2)] * base + value[code.charCodeAt(i + 3)] - shift;
      var dot = "M" + x + " " + y + "h0" + (mirrored && y ? "M" + x + " " + -y + "h0" : "");
      if (Math.abs(x) >= edge || Math.abs(y) >= edge) outside += dot; else inside += dot;
    }
    return [inside, outside];
  }

  var planes = all("[data-run]").map(function (card) {
    var run = data.runs[card.dataset.run], clouds = card.querySelector(".clouds");
    var marks = data.layers.map(function (name, place) {
      var group = make("g", "pts " + data.shades[place], clouds);
      make("title", "", group).textContent = name;
      var pair = [make("path", "", group), make("path", "far", group)];
      pair[1].setAttribute("stroke-width", data.plane.square);
      return { group: group, paths: pair };
    });
    return { card: card, run: run, marks: marks, figure: card.querySelector(".stage .fig"), desc: card.querySelector("desc") };
  });

  // The run's last reading up to a step.
  function frameAt(run, number) {
    return run.frames[before(run.frames.map(function (frame) { return frame.step; }), number)] || null;
  }

  function numbers(frame) {
    if (layer < 0) return frame.all;
    var entry = frame.layers.find(function (one) { return one[0] === layer; });
    return entry && entry.slice(3);
  }

  function when(plane, frame) {
    if (!frame) return "no reading yet";
    var ended = frame === plane.run.frames[plane.run.frames.length - 1];
    return "step " + step(frame.step) + (frame.step < data.steps[at] ? (ended ? ", its last reading" : ", the reading before") : "");
  }

  function tell(plane, frame) {
    var counted = frame && numbers(frame), labels = layer < 0 ? data.labels.all : data.labels.one;
    var list = plane.card.querySelector(".readout"), rows = [["no reading yet", "–"]];
    if (frame) rows = [["this layer", "not in this reading"]];
    // The two counts stand last.
    if (counted) rows = counted.slice(2).map(function (text, place) { return [labels[place + 2], text]; })
      .concat([[labels[0], step(counted[0])], [labels[1], step(counted[1])]]);
    list.textContent = "";
    rows.forEach(function (row) {
      var pair = document.createElement("div");
      pair.appendChild(document.createElement("dt")).textContent = row[0];
      pair.appendChild(document.createElement("dd")).textContent = row[1];
      list.appendChild(pair);
    });
    plane.card.querySelector(".shown").textContent = when(plane, frame);
    var said = counted ? rows.slice(0, 2).map(function (row) { return row.join(" "); }).join(", ") : when(plane, frame);
    plane.desc.textContent = when(plane, frame) + ". " + said;
    return (planes.length > 1 ? plane.run.name + ": " : "") + said;
  }

  function draw(plane) {
    var frame = frameAt(plane.run, data.steps[at]);
    if (plane.frame !== frame) {
      plane.frame = frame;
      plane.marks.forEach(function (mark) { mark.paths.forEach(function (path) { path.setAttribute("d", ""); }); });
      (frame ? frame.layers : []).forEach(function (entry) {
        var paths = plane.marks[entry[0]].paths, code = dots(entry[2], entry[1]);
        var size = data.plane.dots.find(function (pair) { return pair[0] === null || entry[3] <= pair[0]; });
        paths[0].setAttribute("d", code[0]);
        paths[1].setAttribute("d", code[1]);
        paths[0].setAttribute("stroke-width", size[1]);
      });
    }
    plane.figure.classList.toggle("one", layer >= 0);
    plane.marks.forEach(function (mark, place) { mark.group.classList.toggle("on", place === layer); });
    return tell(plane, frame);
  }

  var cursors = all('[data-kind="curve"] .cursor').map(function (mark) {
    var about = mark.dataset, room = about.right - about.left, steps = about.high - about.low;
    return {
      mark: mark,
      show: function () {
        var x = Number(about.left) + room * (data.steps[at] - about.low) / steps;
        mark.setAttribute("d", "M" + x.toFixed(1) + " " + about.span);
      },
      pick: function (x) { return nearest(Number(about.low) + steps * (x - about.left) / room); }
    };
  });

  // A map of layers by steps: its frame follows the movie, and a cell says its number.
  var heats = all(".column[data-wide]").map(function (mark, place) {
    var about = mark.dataset, wide = Number(about.wide), high = Number(about.high), rows = Number(about.rows), heat = data.heats[place];
    return {
      mark: mark,
      heat: heat,
      show: function () {
        var column = before(heat.steps, data.steps[at]), row = layer < 0 ? -1 : heat.layers.indexOf(data.layers[layer]);
        var x = Number(about.left) + column * wide, y = Number(about.top) + (row < 0 ? 0 : rows - 1 - row) * high;
        mark.setAttribute("d", column < 0 ? "" : "M" + x.toFixed(1) + " " + y.toFixed(1) + "h" + wide.toFixed(1) + "v" + (high * (row < 0 ? rows : 1)).toFixed(1) + "h" + (-wide).toFixed(1) + "z");
      },
      cell: function (x, y) {
        var column = Math.floor((x - about.left) / wide), row = rows - 1 - Math.floor((y - about.top) / high);
        return column >= 0 && column < heat.steps.length && row >= 0 && row < rows ? [column, row] : null;
      },
      text: function (cell) {
        var found = before(heat.columns, cell[0]), end = heat.columns[heat.columns.length - 1];
        var text = found >= 0 && cell[0] <= end ? heat.texts[found][cell[1]] : null;
        var shown = heat.steps[text === null ? cell[0] : heat.columns[found]];
        return heat.layers[cell[1]] + ", step " + step(shown) + ": " + (text === null ? "no reading" : text);
      }
    };
  });

  var slider = document.getElementById("step"), picker = document.getElementById("layer"), shown = document.getElementById("at");
  function show(place, chosen) {
    if (!moving) return;
    at = place;
    layer = chosen;
    slider.value = at;
    picker.value = layer;
    shown.textContent = "step " + step(data.steps[at]);
    slider.setAttribute("aria-valuetext", [shown.textContent + (layer < 0 ? "" : ", " + data.layers[layer])].concat(planes.map(draw)).join("; "));
    cursors.concat(heats).forEach(function (one) { one.show(); });
  }
  function choose(place, chosen) {
    if (moving) stop();
    show(place, chosen);
  }

  heats.forEach(function (map) {
    var figure = map.mark.ownerSVGElement, stage = figure.parentNode, tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    stage.appendChild(tip);
    function read(event) {
      var spot = point(event, figure), cell = map.cell(spot[0], spot[1]);
      tip.hidden = !cell;
      if (!cell) return;
      tip.textContent = map.text(cell);
      var x = spot[0] / figure.viewBox.baseVal.width * stage.clientWidth, y = spot[1] / figure.viewBox.baseVal.height * stage.clientHeight;
      tip.style.left = Math.max(0, Math.min(x - tip.offsetWidth / 2, stage.clientWidth - tip.offsetWidth)) + "px";
      tip.style.top = y - tip.offsetHeight - 12 + "px";
    }
    figure.addEventListener("pointermove", read);
    figure.addEventListener("pointerdown", read);
    figure.addEventListener("pointerleave", function () { tip.hidden = true; });
    figure.addEventListener("click", function (event) {
      var spot = point(event, figure), cell = map.cell(spot[0], spot[1]);
      if (cell) choose(nearest(map.heat.steps[cell[0]]), data.layers.indexOf(map.heat.layers[cell[1]]));
    });
  });
  if (!moving) return;

  var play = document.getElementById("play"), motion = document.getElementById("motion");
  var still = matchMedia("(prefers-reduced-motion: reduce)");
  function label() {
    motion.hidden = !still.matches;
    play.textContent = still.matches ? "Next" : timer ? "Pause" : "Play";
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    label();
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
  slider.addEventListener("input", function () { choose(Number(slider.value), layer); });
  picker.addEventListener("change", function () { show(at, Number(picker.value)); });
  cursors.forEach(function (cursor) {
    var figure = cursor.mark.ownerSVGElement;
    figure.addEventListener("click", function (event) { choose(cursor.pick(point(event, figure)[0]), layer); });
  });

  document.documentElement.classList.add("live");
  play.hidden = slider.disabled = last === 0;
  label();
  show(0, -1);
})();
