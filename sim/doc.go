// Package sim is the root of Skein's simulator: virtual Jetsons that run the
// real agent, a load generator, and the smart-city meter-reading model of the
// demo. It sits at the top of the import order and uses agent and controlplane
// through their façades only.
package sim
