//! Plots as inline SVG: what a browser shows without asking anybody for anything.

/// Of a plot, in its own units; the browser scales it.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 42.0;
/// One bar with its surroundings.
const BAR: f64 = 24.0;
/// Where bars begin and end.
const BARS_FROM: f64 = 170.0;
const BARS_TO: f64 = 545.0;
/// Characters that fit before them.
const LABEL: usize = 24;
/// An axis reaches no further down than to this part of its greatest value.
const FAR: f64 = 1000.0;
/// About so many lines across.
const TICKS: f64 = 5.0;

/// What an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Seconds,
    /// 1 is everything.
    Part,
    Number,
}

/// How an axis grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    /// Linear, unless values lie far apart.
    Fitting,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) scale: Scale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Line,
    Dashed,
    Area,
    Dots,
}

/// Points in order; where a `y` is no number the line has a gap.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) style: Style,
    /// Which of the page's colours.
    pub(super) colour: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over an axis.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

/// Values beside each other.
#[derive(Clone, Debug)]
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) unit: Unit,
    /// Name, value and colour.
    pub(super) values: Vec<(String, f64, usize)>,
}

/// From values to places.
struct Ruler {
    from: f64,
    to: f64,
    is_log: bool,
    ticks: Vec<f64>,
}

impl Ruler {
    fn new(values: impl Iterator<Item = f64>, axis: Axis) -> Self {
        let finite: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let most = finite.iter().copied().fold(0.0, f64::max);
        let least =
            finite.iter().copied().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        if axis.unit == Unit::Part {
            return Self {
                from: 0.0,
                to: 1.0,
                is_log: false,
                ticks: vec![0.0, 0.25, 0.5, 0.75, 1.0],
            };
        }
        if axis.scale == Scale::Fitting && least.is_finite() && most / least > 50.0 {
            return Self::log(least.max(most / FAR), most);
        }
        let step = nice(most.max(1e-9) / TICKS);
        let to = (most.max(1e-9) / step).ceil() * step;
        let mut ticks = vec![0.0];
        while ticks[ticks.len() - 1] < to - step / 2.0 {
            ticks.push(ticks.len() as f64 * step);
        }
        Self { from: 0.0, to, is_log: false, ticks }
    }

    /// Whole decades would leave much empty, so it ends at 1, 2 or 5 of one.
    fn log(least: f64, most: f64) -> Self {
        let marks: Vec<f64> = (-6..12)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|mark| mark * 10_f64.powi(power)))
            .collect();
        let from = marks.iter().copied().filter(|mark| *mark <= least).fold(marks[0], f64::max);
        let to = marks.iter().copied().find(|mark| *mark >= most).unwrap_or(most);
        let within = marks.iter().copied().filter(|mark| (from..=to).contains(mark));
        let ticks: Vec<f64> = within.collect();
        let every = ticks.len().div_ceil(8).max(1);
        Self { from, to, is_log: true, ticks: ticks.into_iter().step_by(every).collect() }
    }

    /// What the axis is called. That it is logarithmic is not seen at a glance, and distances on it mean something else.
    fn named(&self, axis: Axis) -> String {
        match axis.name {
            name if !self.is_log => name.to_owned(),
            "" => "logarithmic".to_owned(),
            name => format!("{name}, logarithmic"),
        }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let part = if self.is_log {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        part.clamp(0.0, 1.0)
    }
}

/// The next of 1, 2, 2.5, 5 and their tens from here on.
fn nice(step: f64) -> f64 {
    let ten = 10_f64.powf(step.log10().floor());
    let marks = [1.0, 2.0, 2.5, 5.0, 10.0].map(|mark| mark * ten);
    marks.into_iter().find(|mark| *mark >= step * 0.999).unwrap_or(step)
}

/// A value as it stands beside a line or a bar.
pub(super) fn shown(value: f64, unit: Unit) -> String {
    let plain = |value: f64| {
        let digits = match value.abs() {
            size if size >= 100.0 || size == 0.0 => 0,
            size if size >= 10.0 => 1,
            size if size >= 0.1 => 2,
            _ => 3,
        };
        let text = format!("{value:.digits$}");
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    };
    match unit {
        Unit::Millis if value >= 1000.0 => format!("{} s", plain(value / 1000.0)),
        Unit::Millis => format!("{} ms", plain(value)),
        Unit::Seconds => format!("{} s", plain(value)),
        Unit::Part => format!("{} %", plain(value * 100.0)),
        Unit::Number if value >= 10_000.0 => format!("{}k", plain(value / 1000.0)),
        Unit::Number => plain(value),
    }
}

/// The texts of all items, one after the other.
pub(super) fn all<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    let mut texts = String::new();
    for item in items {
        texts += &text(item);
    }
    texts
}

/// Text as it may stand in HTML.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            control if control.is_control() => safe.push(' '),
            other => safe.push(other),
        }
    }
    safe
}

impl Plot {
    /// The whole figure; nothing where there is nothing to show.
    pub(super) fn figure(&self) -> String {
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        if !points().any(|(_, y)| y.is_finite()) {
            return String::new();
        }
        let x = Ruler::new(points().filter(|(_, y)| y.is_finite()).map(|(x, _)| *x), self.x);
        let y = Ruler::new(points().map(|(_, y)| *y), self.y);
        let drawn: String = self.series.iter().map(|series| series.drawn(&x, &y)).collect();
        // The axis's name has a line of its own.
        let height = if x.named(self.x).is_empty() { HEIGHT - 14.0 } else { HEIGHT };
        let body = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">{grid}{drawn}</svg>",
            title = escaped(self.title),
            grid = self.grid(&x, &y),
        );
        figure(self.title, &self.legend(&y), &body)
    }

    fn grid(&self, x: &Ruler, y: &Ruler) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let across_it = all(&y.ticks, |tick| {
            let at = down(y.place(*tick));
            format!(
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/><text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{text}</text>",
                x = LEFT - 7.0,
                y = at + 3.5,
                text = shown(*tick, self.y.unit),
            )
        });
        let below = all(&x.ticks, |tick| {
            let at = across(x.place(*tick));
            format!(
                "<path class=\"grid\" d=\"M{at:.1} {bottom}v4\"/><text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>",
                y = bottom + 16.0,
                text = shown(*tick, self.x.unit),
            )
        });
        let names = format!(
            "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/><text class=\"name\" x=\"{right}\" y=\"{y}\" text-anchor=\"end\">{x}</text>",
            y = HEIGHT - 8.0,
            x = escaped(&x.named(self.x)),
        );
        [across_it, below, names].concat()
    }

    fn legend(&self, y: &Ruler) -> String {
        let named = self.series.iter().filter(|series| !series.name.is_empty());
        let keys = all(named, |series| {
            let dashed = if series.style == Style::Dashed { " dashed" } else { "" };
            format!(
                "<span><i class=\"b{}{dashed}\"></i>{}</span>",
                series.colour,
                escaped(&series.name)
            )
        });
        format!(
            "<p class=\"legend\">{keys}<span class=\"unit\">{}</span></p>",
            escaped(&y.named(self.y))
        )
    }
}

fn across(part: f64) -> f64 {
    LEFT + part * (WIDTH - LEFT - RIGHT)
}

fn down(part: f64) -> f64 {
    HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
}

impl Series {
    fn drawn(&self, x: &Ruler, y: &Ruler) -> String {
        let places: Vec<Option<(f64, f64)>> = self
            .points
            .iter()
            .map(|(at, value)| {
                value.is_finite().then(|| (across(x.place(*at)), down(y.place(*value))))
            })
            .collect();
        // Runs of points that follow each other.
        let mut drawn = String::new();
        for run in places.split(Option::is_none) {
            let run: Vec<(f64, f64)> = run.iter().flatten().copied().collect();
            drawn += &self.run(&run);
        }
        drawn
    }

    fn run(&self, run: &[(f64, f64)]) -> String {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return String::new() };
        let line: Vec<String> = run.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let line = format!("M{}", line.join("L"));
        let colour = self.colour;
        let dot = |(x, y): &(f64, f64)| {
            format!("<circle class=\"f{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.2\"/>")
        };
        match self.style {
            // A line of one point is not seen.
            _ if run.len() == 1 => dot(first),
            Style::Line => format!("<path class=\"l{colour}\" d=\"{line}\"/>"),
            Style::Dashed => format!("<path class=\"l{colour} dashed\" d=\"{line}\"/>"),
            Style::Area => format!(
                "<path class=\"a{colour}\" d=\"{line}V{bottom}H{from:.1}Z\"/><path class=\"l{colour}\" d=\"{line}\"/>",
                bottom = HEIGHT - BOTTOM,
                from = first.0,
            ),
            Style::Dots => {
                let dots: String = run.iter().map(dot).collect();
                debug_assert!(first.0 <= last.0, "points are in order");
                format!("<path class=\"l{colour}\" d=\"{line}\"/>{dots}")
            }
        }
    }
}

impl Bars {
    /// The whole figure; nothing where there is nothing to show.
    pub(super) fn figure(&self) -> String {
        let most = self.values.iter().map(|(_, value, _)| *value).fold(0.0, f64::max);
        if most <= 0.0 {
            return String::new();
        }
        let bars = all(self.values.iter().enumerate(), |(place, (name, value, colour))| {
            let y = place as f64 * BAR;
            let long = ((BARS_TO - BARS_FROM) * value / most).max(1.0);
            let short: String = if name.chars().count() > LABEL {
                name.chars().take(LABEL - 1).chain(['…']).collect()
            } else {
                name.clone()
            };
            format!(
                "<g><title>{whole}: {value}</title><text x=\"{x}\" y=\"{text:.1}\" text-anchor=\"end\">{short}</text>\
                     <rect class=\"f{colour}\" x=\"{BARS_FROM}\" y=\"{bar:.1}\" width=\"{long:.1}\" height=\"16\" rx=\"2\"/>\
                     <text class=\"value\" x=\"{after:.1}\" y=\"{text:.1}\">{value}</text></g>",
                whole = escaped(name),
                value = shown(*value, self.unit),
                x = BARS_FROM - 8.0,
                text = y + 15.5,
                short = escaped(&short),
                bar = y + 4.0,
                after = BARS_FROM + long + 7.0,
            )
        });
        let height = self.values.len() as f64 * BAR + 4.0;
        let body = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">{bars}</svg>",
            escaped(&self.title)
        );
        figure(&self.title, "", &body)
    }
}

fn figure(title: &str, legend: &str, body: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>{legend}{body}</figure>\n", escaped(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short() {
        for (value, unit, text) in [
            (0.0, Unit::Millis, "0 ms"),
            (12.34, Unit::Millis, "12.3 ms"),
            (1500.0, Unit::Millis, "1.5 s"),
            (0.25, Unit::Part, "25 %"),
            (100.0, Unit::Number, "100"),
            (12_500.0, Unit::Number, "12.5k"),
            (30.0, Unit::Seconds, "30 s"),
        ] {
            assert_eq!(shown(value, unit), text);
        }
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("<a href='x'>&\"\n"), "&lt;a href=&#39;x&#39;&gt;&amp;&quot; ");
    }

    #[test]
    fn rulers_hold_all_values() {
        let axis = |scale| Axis { name: "", unit: Unit::Millis, scale };
        let near = Ruler::new([3.0, 47.0, f64::NAN].into_iter(), axis(Scale::Fitting));
        assert_eq!(
            (near.is_log, near.ticks.as_slice()),
            (false, &[0.0, 10.0, 20.0, 30.0, 40.0, 50.0][..])
        );
        let far = Ruler::new([7.0, 4000.0].into_iter(), axis(Scale::Fitting));
        assert!(far.is_log && far.from <= 7.0 && far.to >= 4000.0);
        assert!((far.place(far.to) - 1.0).abs() < 1e-9 && far.place(far.from) < 1e-9);
        let none = Ruler::new(std::iter::empty(), axis(Scale::Linear));
        assert!(none.to > none.from && none.place(5.0).is_finite());
    }

    #[test]
    fn lines_have_gaps_where_there_is_no_value() {
        let axis = Axis { name: "x", unit: Unit::Number, scale: Scale::Linear };
        let series = Series {
            name: "a<b".to_owned(),
            style: Style::Line,
            colour: 1,
            points: vec![(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 1.0)],
        };
        let plot = Plot { title: "t", x: axis, y: axis, series: vec![series] };
        let figure = plot.figure();
        assert_eq!(figure.matches("<path class=\"l1\"").count(), 2);
        assert!(figure.contains("a&lt;b") && !figure.contains("NaN"));
        assert_eq!(Plot { series: Vec::new(), ..plot }.figure(), "");
    }

    #[test]
    fn logarithmic_axes_are_told() {
        let fitting = |name| Axis { name, unit: Unit::Millis, scale: Scale::Fitting };
        let linear = Axis { name: "x", unit: Unit::Number, scale: Scale::Linear };
        let figure = |x, y, most| {
            let points = vec![(1.0, 1.0), (most, most)];
            let series = Series { name: String::new(), style: Style::Line, colour: 0, points };
            Plot { title: "t", x, y, series: vec![series] }.figure()
        };
        let below = figure(fitting(""), linear, 1000.0);
        assert!(below.contains(">logarithmic</text>"), "{below}");
        let beside = figure(linear, fitting("p95"), 1000.0);
        assert!(beside.contains(">p95, logarithmic</span>"), "{beside}");
        assert!(!figure(fitting(""), fitting("p95"), 10.0).contains("logarithmic"));
    }
}
