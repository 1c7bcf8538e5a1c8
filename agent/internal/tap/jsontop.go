package tap

// replaceTop replaces the values of keys at the top level of the JSON object
// that in begins with, and leaves every other byte as it is. It stops where in
// is no JSON object, or ends within one.
func replaceTop(in []byte, with map[string][]byte) []byte {
	i := skipSpace(in, 0)
	if i >= len(in) || in[i] != '{' {
		return in
	}
	i++
	var out []byte
	from := 0
	for {
		i = skipSpace(in, i)
		if i < len(in) && in[i] == ',' {
			i = skipSpace(in, i+1)
		}
		if i >= len(in) || in[i] != '"' {
			break
		}
		keyEnd := skipValue(in, i)
		if keyEnd < 0 {
			break
		}
		key := string(in[i+1 : keyEnd-1])
		i = skipSpace(in, keyEnd)
		if i >= len(in) || in[i] != ':' {
			break
		}
		i = skipSpace(in, i+1)
		end := skipValue(in, i)
		if end < 0 {
			break
		}
		if v, ok := with[key]; ok {
			out = append(append(out, in[from:i]...), v...)
			from = end
		}
		i = end
	}
	if from == 0 {
		return in
	}
	return append(out, in[from:]...)
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the end of the value at i, -1 when it does not end in b.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if i >= len(b) {
				return -1
			}
			i++
			if depth == 0 {
				return i
			}
		case '{', '[':
			depth++
			i++
		case '}', ']':
			if depth == 0 {
				return i // the end of a bare value
			}
			depth--
			i++
			if depth == 0 {
				return i
			}
		case ',':
			if depth == 0 {
				return i
			}
			i++
		default:
			i++
		}
	}
	return -1
}
