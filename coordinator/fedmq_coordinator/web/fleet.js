// The fleet's table: sorted, filtered, and only as many rows in the page as can be seen. Text from outside goes into
// text nodes and nowhere else.

const ROW = 36; // pixels, as the style sheet has it: 2.25rem
const SPARE = 8; // rows above and below those in sight

export class FleetTable {
  #rows = [];
  #shown = [];
  #at = {};
  #pool = [];
  #sort = null; // as the server gives them: those to look at first
  #wanted = { text: "", state: "" };
  #frame = 0;

  // `cell(field, row)` gives a value's text; `link(row)` where a gateway's name leads.
  constructor(section, { cell, link }) {
    this.cell = cell;
    this.link = link;
    this.scroll = section.querySelector("#fleet-scroll");
    this.table = section.querySelector("#fleet");
    this.body = this.table.tBodies[0];
    this.heads = [...this.table.tHead.rows[0].cells];
    this.fields = this.heads.map((head) => head.dataset.field);
    this.count = section.querySelector("#fleet-count");
    this.above = gap(this.fields.length);
    this.below = gap(this.fields.length);
    this.heads.forEach((head, index) => this.#makeSortable(head, this.fields[index]));
    const find = section.querySelector("#fleet-find");
    const state = section.querySelector("#fleet-state");
    find.addEventListener("input", () => this.#want({ text: find.value.trim().toLowerCase() }));
    state.addEventListener("change", () => this.#want({ state: state.value }));
    this.scroll.addEventListener("scroll", () => this.#soon(), { passive: true });
    new ResizeObserver(() => this.#soon()).observe(this.scroll);
  }

  // What the server tells: names of columns, and rows of values.
  set({ columns, rows }) {
    this.#at = Object.fromEntries(columns.map((name, index) => [name, index]));
    this.#rows = rows;
    this.#choose();
  }

  value(row, field) {
    return row[this.#at[field]];
  }

  #want(change) {
    this.#wanted = { ...this.#wanted, ...change };
    this.scroll.scrollTop = 0;
    this.#choose();
  }

  #choose() {
    const { text, state } = this.#wanted;
    const searched = ["name", "look", "tags", "software", "engines", "reasons", "sensors", "last_answer", "battery", "link"].map((field) => this.#at[field]);
    const place = this.#at.state;
    const look = this.#at.look;
    this.#shown = this.#rows.filter(
      (row) =>
        (state === "" || (state === "look" ? row[look] !== "" : row[place] === state)) &&
        (text === "" || searched.some((at) => row[at] != null && String(row[at]).toLowerCase().includes(text))),
    );
    if (this.#sort) this.#order();
    this.#tell();
    this.#draw();
  }

  #order() {
    const { field, down } = this.#sort;
    const value = (row) => {
      if (field === "dense") {
        const wire = this.value(row, "up") + this.value(row, "down");
        return wire ? this.value(row, "dense") / wire : null;
      }
      return this.value(row, field);
    };
    const words = new Intl.Collator("en", { numeric: true });
    const keyed = this.#shown.map((row) => [value(row), row]);
    // What is not known stands last, whichever way.
    keyed.sort(([a], [b]) => {
      const missing = Number(a == null || a === "") - Number(b == null || b === "");
      if (missing) return missing;
      const order = typeof a === "number" && typeof b === "number" ? a - b : words.compare(String(a ?? ""), String(b ?? ""));
      return down ? -order : order;
    });
    this.#shown = keyed.map(([, row]) => row);
  }

  #makeSortable(head, field) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      // Numbers begin with the largest, words with the first.
      const first = head.classList.contains("number") || field === "last_seen";
      const down = this.#sort?.field === field ? !this.#sort.down : first;
      this.#sort = { field, down };
      for (const other of this.heads) other.setAttribute("aria-sort", other === head ? (down ? "descending" : "ascending") : "none");
      this.scroll.scrollTop = 0;
      this.#choose();
    });
  }

  #tell() {
    const of = (state) => this.#rows.filter((row) => this.value(row, "state") === state).length;
    const all = this.#rows.length;
    const look = this.#rows.filter((row) => this.value(row, "look")).length;
    const shown = this.#shown.length === all ? "" : ` ${this.#shown.length.toLocaleString("en")} shown.`;
    const text = `${all.toLocaleString("en")} gateway${all === 1 ? "" : "s"}: ${of("online").toLocaleString("en")} online, ${of("away").toLocaleString("en")} away, ${look.toLocaleString("en")} to look at.${shown}`;
    if (this.count.textContent !== text) this.count.textContent = text;
    this.table.setAttribute("aria-rowcount", String(this.#shown.length + 1));
  }

  #soon() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => { this.#frame = 0; this.#draw(); });
  }

  #draw() {
    const total = this.#shown.length;
    const inSight = Math.ceil(Math.max(this.scroll.clientHeight, ROW) / ROW);
    const first = Math.max(0, Math.min(Math.floor(this.scroll.scrollTop / ROW) - SPARE, total - inSight - 2 * SPARE));
    const last = Math.min(total, first + inSight + 2 * SPARE);
    const rows = [];
    for (let place = first; place < last; place += 1) {
      const made = (this.#pool[place - first] ??= this.#makeRow());
      this.#fill(made, this.#shown[place], place);
      rows.push(made.row);
    }
    size(this.above, first * ROW);
    size(this.below, (total - last) * ROW);
    const wanted = [this.above, ...rows, this.below];
    // Rows stay where they are as long as their number does: focus and reading position with them.
    if (wanted.length !== this.body.children.length || wanted.some((row, index) => this.body.children[index] !== row)) {
      this.body.replaceChildren(...wanted);
    }
  }

  #makeRow() {
    const row = document.createElement("tr");
    const cells = this.fields.map((field, index) => {
      const cell = document.createElement(field === "name" ? "th" : "td");
      if (field === "name") cell.scope = "row";
      const inner = field === "name" ? document.createElement("a") : field === "state" ? document.createElement("span") : null;
      if (inner) cell.append(inner);
      const kind = this.heads[index].className;
      if (kind) cell.className = kind;
      row.append(cell);
      return { cell, inner, text: null };
    });
    return { row, cells };
  }

  #fill(made, row, place) {
    made.row.setAttribute("aria-rowindex", String(place + 2));
    made.cells.forEach((own, index) => {
      const field = this.fields[index];
      const text = this.cell(field, (name) => this.value(row, name));
      if (own.text === text && field !== "name") return;
      own.text = text;
      (own.inner ?? own.cell).textContent = text;
      if (field === "name") own.inner.href = this.link(text);
      if (field === "state") own.inner.className = "state " + text.replace(" ", "-");
      if (own.cell.className === "note") own.cell.title = text;
    });
  }
}

function gap(columns) {
  const row = document.createElement("tr");
  row.className = "gap";
  row.setAttribute("aria-hidden", "true");
  const cell = document.createElement("td");
  cell.colSpan = columns;
  row.append(cell);
  return row;
}

function size(row, height) {
  row.style.height = `${height}px`;
  row.hidden = height === 0;
}
