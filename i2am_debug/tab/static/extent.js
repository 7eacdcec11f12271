// Largest value and sum of a map.
export function extent(values) {
  let [top, sum] = [0, 0];
  for (const value of values) {
    if (value > top) top = value;
    sum += value;
  }
  return {top, sum};
}
