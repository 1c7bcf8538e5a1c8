import { count } from "../lib/format";
import { Icon } from "./Icon";
import { Menu } from "./Menu";

interface Props {
  label: string;
  options: Map<string, number>;
  chosen: string[];
  show?: (value: string) => string;
  onChange: (values: string[]) => void;
}

/** A filter with several choices and the number of devices behind each. */
export function FacetMenu({ label, options, chosen, show = (v) => v, onChange }: Props) {
  const values = [...new Set([...options.keys(), ...chosen])].sort((a, b) => (options.get(b) ?? 0) - (options.get(a) ?? 0) || a.localeCompare(b));
  const text = chosen.length === 0 ? label : chosen.length === 1 ? `${label}: ${show(chosen[0] ?? "")}` : `${label}: ${chosen.length}`;
  return (
    <Menu
      className={`btn ${chosen.length > 0 ? "chosen" : ""}`}
      label={
        <>
          <span className="clip facet-text">{text}</span>
          <Icon name="down" />
        </>
      }
    >
      <fieldset className="plain">
        <legend className="sr">{label}</legend>
        {values.length === 0 && <p className="muted small menu-note">No device has one.</p>}
        {values.map((v) => (
          <label key={v} className="option" title={v}>
            <input type="checkbox" checked={chosen.includes(v)} onChange={(e) => onChange(e.target.checked ? [...chosen, v] : chosen.filter((c) => c !== v))} />
            <span className="clip">{show(v)}</span>
            <span className="tail">{count(options.get(v) ?? 0)}</span>
          </label>
        ))}
      </fieldset>
    </Menu>
  );
}
