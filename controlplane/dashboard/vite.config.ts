import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// skeind during development: SKEIN_URL=http://127.0.0.1:8080 npm run dev
const server = process.env.SKEIN_URL ?? "http://127.0.0.1:8080";
const api = { target: server, changeOrigin: true };

export default defineConfig({
  plugins: [react()],
  build: {
    outDir: "dist/app",
    emptyOutDir: true,
    target: ["chrome123", "firefox128", "safari17.5"],
    assetsInlineLimit: 0, // the Content-Security-Policy allows files, not data: scripts or fonts
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 700,
  },
  server: {
    proxy: {
      "^/skein\\.": api,
      "/api/": api,
      "/logout": api,
      "/login": { ...api, bypass: (req) => (req.method === "POST" ? undefined : "/index.html") },
    },
  },
});
