// Walks the whole dashboard in Chromium against a running control plane and
// exits 1 when anything is wrong: a page that does not show its content, an
// accessibility violation, a console error, a request that fails, a page wider
// than its window, or a rollout that cannot be started, paused, resumed and
// aborted.
//
//   SKEIN_URL=http://127.0.0.1:8080 SKEIN_TOKEN=skp_… node test/walk.mjs
//
// SKEIN_SHOTS=DIR   also write screenshots: 1280 and 390 px, light and dark
// SKEIN_RELEASE=N   name@version of the release to roll out (default: the newest)
// SKEIN_READONLY=1  look only: no rollout, no token
// CHROMIUM=PATH     the browser (default /usr/bin/chromium)
import { readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { chromium } from "playwright-core";

const url = process.env.SKEIN_URL;
const token = process.env.SKEIN_TOKEN;
if (!url || !token) {
  console.error("walk: set SKEIN_URL and SKEIN_TOKEN");
  process.exit(2);
}
const shots = process.env.SKEIN_SHOTS;
const readonly = Boolean(process.env.SKEIN_READONLY);
const patience = Number(process.env.SKEIN_PATIENCE_MS ?? 15_000);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const wide = { width: 1280, height: 860 };
const phone = { width: 390, height: 844 };

const problems = [];
const problem = (where, text) => {
  problems.push(`${where}: ${text}`);
  console.error(`  ✗ ${where}: ${text}`);
};
const started = Date.now();
const say = (text) => console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${text}`);

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: wide, timezoneId: "Europe/Paris", colorScheme: "light", reducedMotion: "reduce" });
context.setDefaultTimeout(patience);
// Everything that moves on the page without the person's doing is summed up.
await context.addInitScript(() => {
  window.shift = 0;
  window.shifted = [];
  new PerformanceObserver((list) => {
    for (const e of list.getEntries()) {
      if (e.hadRecentInput) continue;
      window.shift += e.value;
      for (const s of e.sources ?? []) window.shifted.push(`${s.node?.nodeName ?? "?"}.${s.node?.className ?? ""}`);
    }
  }).observe({ type: "layout-shift", buffered: true });
});
const page = await context.newPage();
let here = "start";
let expected401 = true; // before the login WhoAmI answers 401, and the browser says so
page.on("console", (m) => {
  if (m.type() !== "error" && m.type() !== "warning") return;
  if (expected401 && /401/.test(m.text())) return;
  problem(here, `console ${m.type()}: ${m.text()}`);
});
page.on("pageerror", (e) => problem(here, `exception: ${e.message}`));
page.on("response", (r) => {
  if (r.status() >= 400 && !(expected401 && r.status() === 401)) problem(here, `${r.status()} from ${new URL(r.url()).pathname}`);
});

async function checkAxe(name) {
  // Through the debugger, which the page's Content-Security-Policy does not bind.
  if (!(await page.evaluate("typeof axe !== 'undefined'"))) await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  for (const v of found.violations) {
    problem(name, `axe ${v.id} (${v.impact}): ${v.help}: ${v.nodes.slice(0, 3).map((n) => `${n.target.join(" ")} ${n.any[0]?.message ?? n.all[0]?.message ?? ""}`).join(" | ")}`);
  }
  return found.passes.length;
}

async function checkWidth(name) {
  const [inner, full] = await page.evaluate(() => [document.documentElement.clientWidth, document.documentElement.scrollWidth]);
  if (full > inner) problem(name, `the page is ${full} px wide in a window of ${inner} px`);
}

async function shoot(name, full = false) {
  if (!shots) return;
  await mkdir(shots, { recursive: true });
  await page.evaluate(() => document.fonts.ready);
  const tall = await page.evaluate(() => document.documentElement.scrollHeight > 8000);
  await page.screenshot({ path: path.join(shots, `${name}.png`), fullPage: full && !tall });
}

async function checkShift(name) {
  const [sum, nodes] = await page.evaluate(() => [window.shift, [...new Set(window.shifted)].slice(0, 5)]);
  if (sum > 0.1) problem(name, `the layout shifted by ${sum.toFixed(3)} while loading (0.1 is allowed): ${nodes.join(", ")}`);
}

/** Looks at the page in both widths and both themes. */
async function inspect(name) {
  here = name;
  let passes = 0;
  for (const [size, label] of [[wide, "1280"], [phone, "390"]]) {
    await page.setViewportSize(size);
    for (const scheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.waitForTimeout(120);
      passes += await checkAxe(`${name} ${label} ${scheme}`);
      await shoot(`${name}-${label}-${scheme}`, label === "390");
    }
    await checkWidth(`${name} ${label}`);
  }
  await page.setViewportSize(wide);
  await page.emulateMedia({ colorScheme: "light" });
  say(`${name}: ${passes} accessibility checks passed`);
}

const heading = (text) => page.getByRole("heading", { level: 1, name: text }).waitFor();

async function visit(name, to, ready) {
  here = name;
  await page.goto(`${url}${to}`);
  try {
    await ready();
  } catch (e) {
    problem(name, `content did not appear: ${e.message.split("\n")[0]}`);
    await shoot(`${name}-missing`);
    return false;
  }
  await page.waitForTimeout(300);
  await checkShift(name);
  await inspect(name);
  return true;
}

async function login() {
  here = "login";
  await page.goto(`${url}/rollouts?x=1`);
  await heading("Sign in to Skein");
  await inspect("login");
  await page.getByLabel("Token").fill("skp_wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").getByText("not valid here").waitFor();
  await page.getByLabel("Token").fill(token);
  await page.keyboard.press("Enter");
  await heading("Rollouts"); // the deep link that was asked for
  expected401 = false;
  say("logged in, back at the deep link");
}

async function walkDevices() {
  here = "devices";
  await page.goto(`${url}/devices`);
  const table = page.getByRole("table", { name: "Devices" });
  await table.waitFor();
  await page.getByText(/^[\d,]+ devices?$/).first().waitFor();
  const total = Number(await table.getAttribute("aria-rowcount")) - 1;
  const inDom = await table.getByRole("row").count();
  if (total > 100 && inDom > 80) problem("devices", `${inDom} rows in the page for ${total} devices: not virtualised`);
  await inspect("devices");

  const first = (await table.getByRole("row").nth(1).getByRole("link").first().textContent())?.trim() ?? "";
  await page.keyboard.press("/");
  await page.keyboard.type(first);
  await page.waitForURL(/[?&]q=/);
  await page.waitForFunction((n) => document.querySelectorAll(".vt-row").length > 0 && document.querySelectorAll(".vt-row").length <= n, Math.max(1, inDom));
  await page.reload();
  await table.waitFor();
  if ((await page.getByRole("searchbox").inputValue()) !== first) problem("devices", "the search is not in the address");
  await page.getByRole("button", { name: "Clear" }).click();
  await page.locator(".filters").getByRole("button", { name: "State", exact: true }).click();
  await page.getByLabel(/^online/).check();
  await page.waitForURL(/state=online/);
  await checkAxe("devices filter open");
  await shoot("devices-filter");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Clear" }).click();
  await page.getByRole("button", { name: "Last seen" }).click();
  await page.waitForURL(/sort=seen/);
  await page.locator("h1").click();
  const focused = (n) => page.waitForFunction((want) => document.activeElement?.closest("[data-index]")?.getAttribute("data-index") === want, n, { timeout: 1000 });
  for (let tries = 0; ; tries++) { // the list may still be on its way
    await page.keyboard.press("j");
    if (await focused("0").then(() => true, () => false)) break;
    if (tries === 10) throw new Error("j does not go to the first row");
  }
  await page.keyboard.press("j");
  await focused("1");
  await page.keyboard.press("Enter");
  await page.waitForURL(/\/devices\/[^/?]+$/);
  say(`devices: ${total}, ${inDom} rows in the page; search, filter, sort and keys work`);
}

async function walkDevice() {
  here = "device";
  await page.getByText("Desired against reported").first().waitFor();
  await page.getByRole("heading", { name: "Measurements" }).waitFor();
  await page.waitForFunction(() => document.querySelectorAll(".chart").length === 6);
  await page.waitForTimeout(1200);
  const plots = await page.locator(".chart canvas").count();
  const id = page.url().split("/devices/")[1];
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll(".chart canvas").length > 0).catch(() => {});
  await page.waitForTimeout(800);
  await checkShift("device");
  await inspect("device");
  await shoot("device-full", true);
  await page.emulateMedia({ colorScheme: "dark" });
  await shoot("device-full-dark", true);
  await page.emulateMedia({ colorScheme: "light" });
  await page.getByRole("button", { name: "15m" }).click();
  await page.waitForURL(/range=15m/);
  await page.getByRole("button", { name: "Edit labels" }).click();
  await page.getByRole("dialog").waitFor();
  await checkAxe("label dialog");
  await shoot("device-labels");
  if (!readonly) {
    await page.getByRole("button", { name: "Add a label" }).click();
    await page.getByLabel(/^Key of label/).last().fill("walked");
    await page.getByLabel(/^Value of label/).last().fill("yes");
    await page.getByRole("button", { name: "Save 1 change" }).click();
    await page.getByText("walked=yes").waitFor();
    await page.getByRole("button", { name: "Edit labels" }).click();
    await page.getByRole("button", { name: "Remove label walked" }).click();
    await page.getByRole("button", { name: "Save 1 change" }).click();
    await page.getByText("walked=yes").waitFor({ state: "detached" });
  } else {
    await page.getByRole("button", { name: "Cancel" }).click();
  }
  await page.getByRole("button", { name: "Revoke" }).click();
  const sure = page.getByRole("button", { name: "Revoke for good" });
  if (await sure.isEnabled()) problem("device", "revoking needs no confirmation");
  await checkAxe("revoke dialog");
  await shoot("device-revoke");
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  say(`device ${id}: ${plots} charts drawn, labels edited, revoke asks first`);
}

/** What updates tell, in the made-up fleet, which has every case of it. */
async function walkUpdates() {
  const shows = async (name, to, texts) => {
    await visit(name, to, async () => {
      for (const text of texts) await page.getByText(text).first().waitFor();
    });
  };
  await shows("device-cache", "/devices/cam-001", ["a device at the same site", "10.20.0.7:7443", "not told", "Firmware table, 1 entry"]);
  await shows("device-trap", "/devices/cam-002", ["slot-unbootable", "An update of the operating system would fail", "A new binary is on trial in slot B", "exit status 1"]);
  await shows("device-window", "/devices/cam-003", ["Its download waits for the window of its policy", /^Until$|Until /, "waiting"]);
  await shows("device-allowance", "/devices/cam-005", ["an allowance of bytes is used up", "An end is not in sight", "50.0 MiB of 50.0 MiB"]);
  await shows("devices-waiting", "/devices?update=waiting", ["cam-003", "cam-005"]);
  if ((await page.getByText("cam-001").count()) > 0) problem("devices-waiting", "a device that does not wait is shown");
  await shows("release-pending", "/releases/meter@4", ["No device can run it yet", "skein trust sign --key FILE", "1 of 2 signed", "bob", "ML-BOM", "models.example.org", "not made by a control plane"]);
  if ((await page.getByRole("link", { name: "Roll out" }).count()) > 0) problem("release-pending", "a release that waits can be rolled out");
  await shows("release-bare", "/releases/meter@1", ["Nothing is attached to this release"]);
  await page.goto(`${url}/rollouts/new`);
  await page.getByLabel("Release", { exact: true }).waitFor();
  if (!(await page.getByRole("option", { name: /meter@4/ }).isDisabled())) problem("start rollout", "a release that waits can be chosen");
}

/** Closes the window of the whole fleet in which releases may be applied, or takes it away again. */
async function setWindow(part) {
  if (token === "skp_fake") return; // there two devices wait anyway
  const settings = [{ scope: "POLICY_SCOPE_FLEET", key: "apply-window", value: part === "set" ? "Mon 03:00-03:01" : "" }];
  const status = await page.evaluate(async ([to, body]) => (await fetch(to, { method: "POST", headers: { "Content-Type": "application/json", "Connect-Protocol-Version": "1" }, body })).status, ["/skein.policy.v1.PolicyService/SetPolicy", JSON.stringify({ [part]: settings })]);
  if (status !== 200) problem(here, `the policy was not taken: ${status}`);
}

async function driveRollout() {
  here = "start rollout";
  await page.goto(`${url}/releases`);
  await page.getByRole("region", { name: "Releases" }).waitFor();
  await setWindow("set");
  const which = process.env.SKEIN_RELEASE;
  const row = which ? page.getByRole("link", { name: `Roll out ${which}`, exact: true }) : page.getByRole("link", { name: /^Roll out / }).first();
  await row.click();
  await heading("New rollout");
  await page.getByLabel(/Watch a wave/).fill("1");
  const go = page.getByRole("button", { name: /^Start on \d/ });
  await go.waitFor();
  await inspect("start-rollout");
  await page.getByRole("button", { name: "Edit as JSON" }).click();
  await page.getByLabel("Specification as JSON").waitFor();
  await checkAxe("spec editor");
  await page.getByRole("button", { name: "Back to the form" }).click();
  await go.waitFor();
  await page.getByLabel("Name", { exact: true }).fill(`walk-${Date.now().toString(36)}`);
  await go.click();
  await page.waitForURL(/\/rollouts\/(?!new)/);
  await page.getByRole("heading", { name: "Waves" }).waitFor();
  await page.locator(".head .badge", { hasText: /running|pending/ }).waitFor();
  await page.locator(".summary").getByText(/^waiting for a window or an allowance [1-9]/).waitFor();
  if ((await page.locator(".summary li", { hasText: "failed" }).textContent()) !== "failed 0") problem("rollout", "devices that wait count as failed");
  await shoot("rollout-running");
  say("rollout: devices that wait for a window are counted apart");

  // Paused at once: a small fleet may be through before everything is looked at.
  const act = async (button, reason, phase) => {
    here = button;
    await page.locator(".head").getByRole("button", { name: button }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel(/^Reason/).fill(reason);
    await checkAxe(`${button} dialog`);
    await dialog.getByRole("button", { name: button }).click();
    await page.locator(".head .badge", { hasText: phase }).waitFor();
    await dialog.waitFor({ state: "detached" });
    say(`rollout: ${button.toLowerCase()} → ${phase.source}`);
  };
  await act("Pause", "the walk pauses it", /^paused$/);
  await inspect("rollout-paused");
  await act("Resume", "the walk resumes it", /^(running|pending)$/);
  await act("Abort", "the walk aborts it", /^(aborting|aborted|rolled-back)$/);
  await setWindow("remove");
  await page.locator(".head .badge", { hasText: /^(aborted|rolled-back)$/ }).waitFor({ timeout: Math.max(patience, 60_000) });
  await inspect("rollout-aborted");
}

async function walkTokens() {
  if (!(await visit("enrol", "/enrol", () => heading("Enrol devices")))) return;
  if (readonly) return;
  await page.getByRole("button", { name: "New claim token" }).click();
  await checkAxe("token dialog");
  await page.getByLabel("Labels for the devices").fill("site=walk");
  await page.getByRole("button", { name: "Make token" }).click();
  await page.getByText("Copy it now").waitFor();
  await checkAxe("enrol with claim");
  await shoot("enrol-claim");
  say("enrol: a claim token was made and shown once");
}

async function walkRest() {
  await visit("releases", "/releases", () => page.getByRole("region", { name: "Releases" }).waitFor());
  await page.getByRole("region", { name: "Releases" }).getByRole("row").nth(1).getByRole("link").first().click();
  await page.getByRole("heading", { name: "Targets", exact: true }).waitFor();
  const attached = page.getByRole("region", { name: "Attestations" });
  await attached.getByText("Provenance").first().waitFor();
  await attached.getByText("ML-BOM").first().waitFor();
  await page.getByRole("heading", { name: "Sources of the model" }).waitFor();
  await inspect("release");
  await visit("models", "/models", () => heading("Models"));
  await page.getByRole("main").getByRole("table").getByRole("link").first().click();
  await page.getByRole("heading", { name: /^Version/ }).first().waitFor();
  await inspect("model");
  await visit("engines", "/engines", async () => {
    const texts = token === "skp_fake" ? ["golden 32 of 32", "build 40 %", "no builder for"] : [/^(No engines yet|Target)$/];
    for (const text of texts) await page.getByText(text).first().waitFor();
  });
  await visit("rollouts", "/rollouts", () => page.getByRole("main").getByRole("listitem").first().waitFor());
  await visit("audit", "/audit", () => page.locator(".audit-row").first().waitFor());
  await page.locator(".audit-row").first().click();
  await checkAxe("audit entry open");
  await shoot("audit-open");
  here = "not found";
  await page.goto(`${url}/no-such-page`);
  await page.getByRole("heading", { name: "There is no such page" }).waitFor();
  await inspect("not-found");
}

async function walkKeys() {
  here = "keys";
  await page.goto(`${url}/`);
  await heading("Fleet overview");
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keyboard shortcuts" }).waitFor();
  await checkAxe("shortcuts");
  await shoot("shortcuts");
  await page.keyboard.press("Escape");
  await page.keyboard.press("g");
  await page.keyboard.press("r");
  await heading("Rollouts");
  await page.getByRole("button", { name: /^View/ }).click();
  await page.getByLabel("Dark").check();
  const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.getByLabel("Light", { exact: true }).check();
  if (dark === (await page.evaluate(() => getComputedStyle(document.body).backgroundColor))) problem("keys", "the theme switch changes nothing");
  await page.getByLabel("As the system").check();
  await page.getByLabel("UTC", { exact: true }).check();
  await page.keyboard.press("Escape");
  await page.locator(".live", { hasText: "UTC" }).waitFor();
  await page.getByRole("button", { name: "Account" }).click();
  await checkAxe("account menu");
  expected401 = true;
  await page.getByRole("button", { name: "Sign out" }).click();
  await heading("Sign in to Skein");
  await page.goto(`${url}/devices`);
  await heading("Sign in to Skein");
  say("keys, theme, zone and sign-out work");
}

try {
  await login();
  await visit("overview", "/", async () => {
    await heading("Fleet overview");
    await page.locator(".live", { hasText: "Live" }).waitFor();
    await page.locator(".bars a").first().waitFor();
  });
  await walkDevices();
  await walkDevice();
  if (token === "skp_fake") await walkUpdates();
  if (!readonly) await driveRollout();
  await walkTokens();
  await walkRest();
  await walkKeys();
} catch (e) {
  problem(here, e.message);
  await shoot("last").catch(() => {});
} finally {
  await browser.close();
}
if (problems.length > 0) {
  console.error(`\n${problems.length} problems:\n${problems.map((p) => `- ${p}`).join("\n")}`);
  process.exit(1);
}
say("all pages walked, nothing wrong");
