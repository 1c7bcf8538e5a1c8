import { TransportProvider } from "@connectrpc/connect-query";
import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { queryClient, transport } from "./lib/transport";
import { loadPages, router } from "./router";
import "./styles.css";
import { Toasts } from "./ui/toast";

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <TransportProvider transport={transport}>
        <QueryClientProvider client={queryClient}>
          <RouterProvider router={router} />
          <Toasts />
        </QueryClientProvider>
      </TransportProvider>
    </StrictMode>,
  );
}

// After the first page has settled; a restart of skeind then loses nobody's page.
setTimeout(loadPages, 1500);
