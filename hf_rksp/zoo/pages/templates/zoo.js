(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("zoo-data").textContent);
  var table = document.getElementById("zoo-table");
  var body = table.tBodies[0];
  var rows = Array.prototype.slice.call(body.rows);
  var find = document.getElementById("find"), family = document.getElementById("family"), weights = document.getElementById("weights");
  var models = {};
  data.models.forEach(function (model) { models[model.id] = model; });

  function title(id) { return body.querySelector('tr[data-id="' + id + '"] th').dataset.v; }

  // Filter.
  function filter() {
    var words = find.value.trim().toLowerCase(), shown = 0;
    rows.forEach(function (row) {
      var fits = row.cells[0].dataset.v.toLowerCase().indexOf(words) >= 0 &&
        (!family.value || row.dataset.family === family.value) && (!weights.value || row.dataset.source === weights.value);
      row.hidden = !fits;
      shown += fits;
    });
    document.getElementById("count").textContent = shown + " of " + rows.length + " models";
    document.getElementById("none").hidden = shown > 0;
  }
  document.getElementById("filters").hidden = false;
  document.getElementById("filters").addEventListener("submit", function (event) { event.preventDefault(); });
  [find, family, weights].forEach(function (field) { field.addEventListener("input", filter); });
  filter();

  // Sort: rising, then falling; models without a value stay at the end.
  Array.prototype.slice.call(table.tHead.rows[0].cells).forEach(function (head, column) {
    if (!head.dataset.kind) return;
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    if (head.title) button.setAttribute("aria-label", head.title);
    head.textContent = "";
    head.append(button);
    button.addEventListener("click", function () {
      var falling = head.getAttribute("aria-sort") === "ascending", numeric = head.dataset.kind === "number";
      Array.prototype.forEach.call(table.tHead.rows[0].cells, function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      rows.slice().sort(function (a, b) {
        var x = a.cells[column].dataset.v, y = b.cells[column].dataset.v;
        if (x === "" || y === "") return (x === "") - (y === "");
        var order = numeric ? x - y : x < y ? -1 : x > y ? 1 : 0;
        return falling ? -order : order;
      }).forEach(function (row) { body.append(row); });
    });
  });

  // Compare two.
  var first = document.getElementById("first"), second = document.getElementById("second");
  var space = "http://www.w3.org/2000/svg";
  function node(name, attributes, parent, text) {
    var made = document.createElementNS(space, name);
    Object.keys(attributes).forEach(function (key) { made.setAttribute(key, attributes[key]); });
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function spoke(place) {
    var angle = 2 * Math.PI * place / data.radar.length - Math.PI / 2;
    return [Math.cos(angle), Math.sin(angle)];
  }
  function part(value, axis) {
    if (value === null) return 0;
    var low = axis.low, high = axis.high;
    if (axis.log) { value = Math.log10(Math.max(value, low)); low = Math.log10(low); high = Math.log10(high); }
    return Math.min(1, Math.max(0, (value - low) / (high - low)));
  }
  function outline(radius, at) {
    return "M" + data.radar.map(function (axis, place) {
      var way = spoke(place), reach = radius * at(axis);
      return (way[0] * reach).toFixed(1) + " " + (way[1] * reach).toFixed(1);
    }).join("L") + "Z";
  }
  function draw() {
    var pair = [models[first.value], models[second.value]], holder = document.getElementById("radar");
    holder.textContent = "";
    var names = [title(first.value), title(second.value)];
    var figure = node("svg", { viewBox: "-190 -140 380 280", "class": "fig", role: "img", "aria-label": names.join(" and ") + ": the table beside has the numbers" }, holder);
    [0.5, 1].forEach(function (rim) { node("path", { "class": "grid", d: outline(100, function () { return rim; }) }, figure); });
    data.radar.forEach(function (axis, place) {
      var way = spoke(place);
      node("path", { "class": "grid", d: "M0 0L" + 100 * way[0] + " " + 100 * way[1] }, figure);
      var side = Math.abs(way[0]) < 0.1 ? "m" : way[0] > 0 ? "" : "e";
      axis.name.split(" ").forEach(function (word, line) {
        node("text", { x: 108 * way[0], y: 116 * way[1] + line * 13 - 3, "class": side }, figure, word);
      });
    });
    pair.forEach(function (model, place) {
      node("path", { "class": place ? "second" : "first", d: outline(100, function (axis) { return part(model.means[axis.key], axis); }) }, figure);
    });
    var versus = document.getElementById("versus-table"), lines = versus.tBodies[0];
    [1, 2].forEach(function (column) { versus.tHead.rows[0].cells[column].textContent = names[column - 1]; });
    lines.textContent = "";
    function add(name, values) {
      var line = lines.insertRow(), head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      line.append(head);
      values.forEach(function (value) { line.insertCell().textContent = value; });
    }
    ["shown", "texts"].forEach(function (part) {
      Object.keys(pair[0][part]).forEach(function (key) {
        add(data.labels[key], pair.map(function (model) { return model[part][key]; }));
      });
    });
    boxes.forEach(function (box) {
      var id = box.closest("tr").dataset.id;
      box.checked = id === first.value || id === second.value;
    });
  }
  var boxes = Array.prototype.slice.call(body.querySelectorAll("input[type=checkbox]"));
  if (data.models.length > 1) {
    [first, second].forEach(function (menu) {
      data.models.forEach(function (model) { menu.add(new Option(title(model.id), model.id)); });
      menu.addEventListener("change", draw);
    });
    second.selectedIndex = 1;
    boxes.forEach(function (box) { box.hidden = false; });
    document.getElementById("versus").hidden = false;
    document.getElementById("compare-hint").textContent = "Choose here, or tick two models in the table. Axes from centre to rim: " + data.axes + ".";
    // A third tick replaces the older of the two; without a tick, the other model stands alone.
    boxes.forEach(function (box) {
      box.addEventListener("change", function () {
        var id = box.closest("tr").dataset.id;
        if (box.checked) { first.value = second.value; second.value = id; }
        else if (id === first.value) first.value = second.value;
        else second.value = first.value;
        draw();
      });
    });
    draw();
  }
})();
