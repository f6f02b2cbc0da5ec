// Times in the viewer's zone, and the colours of the page for charts. Everything else is the server's.
(() => {
  const clock = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit", second: "2-digit"});
  const minute = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit"});
  const dated = new Intl.DateTimeFormat(undefined, {month: "short", day: "numeric", hour: "2-digit", minute: "2-digit"});
  const old = new Intl.DateTimeFormat(undefined, {year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit"});
  const full = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "long"});
  const ago = moment => {
    const seconds = Math.max(0, (Date.now() - moment) / 1000);
    if (seconds < 90) return `${Math.round(seconds)} s ago`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
    return seconds < 172800 ? `${Math.round(seconds / 3600)} h ago` : `${Math.round(seconds / 86400)} days ago`;
  };
  const show = element => {
    const moment = new Date(element.dateTime);
    if (isNaN(moment)) return;
    const today = moment.toDateString() === new Date().toDateString();
    const form = element.dataset.form;
    const text = form === "ago" ? ago(moment) : form === "full" ? full.format(moment)
      : moment.getFullYear() !== new Date().getFullYear() ? old.format(moment)
      : !today ? dated.format(moment) : form === "minute" ? minute.format(moment) : clock.format(moment);
    if (element.textContent !== text) element.textContent = text;
    const title = full.format(moment);
    if (element.title !== title) element.title = title;
  };
  // What a viewer has unfolded stays so when its content is new.
  const unfolded = new Set();
  addEventListener("toggle", event => {
    const key = event.target.dataset.keep;
    if (key) unfolded[event.target.open ? "add" : "delete"](key);
  }, true);
  const within = node => {
    if (!node.querySelectorAll) return;
    node.querySelectorAll("time[datetime]").forEach(show);
    node.querySelectorAll("details[data-keep]").forEach(each => { each.open = unfolded.has(each.dataset.keep) });
  };
  new MutationObserver(changes => changes.forEach(change => {
    if (change.type === "attributes") show(change.target);
    else change.addedNodes.forEach(node => {
      if (node.matches && node.matches("time[datetime]")) show(node);
      else if (node.matches && node.matches("details[data-keep]")) within(node.parentNode);
      else within(node);
    });
  })).observe(document.documentElement, {subtree: true, childList: true, attributes: true, attributeFilter: ["datetime", "data-form"]});
  setInterval(() => document.querySelectorAll('time[data-form="ago"]').forEach(show), 1000);

  // A page whose session has ended is not let in again, whatever it asks for: to the login it goes by being loaded anew.
  setInterval(async () => {
    if (document.getElementById("popup")?.ariaHidden !== "false") return;
    const answer = await fetch("/favicon.ico", {redirect: "manual", cache: "no-store"}).catch(() => null);
    if (answer?.type === "opaqueredirect") location.reload();
  }, 3000);

  window.ink = name => getComputedStyle(document.body).getPropertyValue(name).trim();
  window.shade = (name, part) => { const c = window.ink(name); return c + Math.round(part * 255).toString(16).padStart(2, "0"); };
  window.count = value => value == null ? "–"
    : Number(value).toLocaleString(undefined, Math.abs(value) < 0.1 ? {maximumSignificantDigits: 3} : {});
  window.duration = seconds => seconds == null ? "–" : seconds < 120 ? `${count(+(+seconds).toFixed(1))} s`
    : seconds < 7200 ? `${count(+(seconds / 60).toFixed(1))} min` : seconds < 172800 ? `${count(+(seconds / 3600).toFixed(1))} h`
    : `${count(Math.round(seconds / 86400))} days`;
  window.escaped = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
  window.moment = value => dated.format(new Date(value));

  window.showMoment = (entry, text) => {
    const moment = new Date(text);
    if (entry) entry.value = new Date(moment - moment.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
  };

  const wanted = () => localStorage.getItem("streamproc-theme") || "auto";
  window.theme = {
    dark: () => wanted() === "dark" || (wanted() === "auto" && matchMedia("(prefers-color-scheme: dark)").matches),
    apply() {
      if (window.Quasar && Quasar.Dark) Quasar.Dark.set(this.dark());
      else document.body.classList.toggle("body--dark", this.dark());
      document.documentElement.style.colorScheme = this.dark() ? "dark" : "light";
      const button = document.getElementById("theme");
      if (button) button.textContent = {auto: "Theme: auto", dark: "Theme: dark", light: "Theme: light"}[wanted()];
      if (window.emitEvent) emitEvent("theme");
    },
    next() {
      localStorage.setItem("streamproc-theme", {auto: "dark", dark: "light", light: "auto"}[wanted()]);
      this.apply();
    },
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.theme.apply());
})();
