//! What is asked for, as it is written.

/// A part of what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    Number(u64),
    Symbol(String),
    PerCpu(String, u64),
    List { head: Box<Expression>, of: TypeName, member: String },
    Cast { to: TypeName, stars: u32, what: Box<Expression> },
    Target(Box<Expression>),
    Address(Box<Expression>),
    Member(Box<Expression>, String),
    Element(Box<Expression>, u64),
}

/// A type's name: `struct T`, `MODULE:struct T` of a module's types (`vmlinux`: the kernel's), and of several of one name
/// `struct T#2`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TypeName {
    /// Whose.
    pub module: Option<String>,
    /// Its words.
    pub words: Vec<String>,
    /// Which of several, from 1 up.
    pub which: Option<u64>,
}

/// Parts within parts, at most.
const DEEPEST: usize = 32;

/// Reads an expression.
pub(super) struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn whole(text: &str) -> Result<Expression, String> {
        let mut parser = Parser { rest: text, depth: 0 };
        let expression = parser.unary()?;
        match parser.peek() {
            "" => Ok(expression),
            rest => Err(format!("'{rest}' is one too many")),
        }
    }

    /// What is next: a name or number, `->`, or one character; empty at the end.
    fn peek(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let word = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let length = match word {
            0 if self.rest.starts_with("->") => 2,
            0 => self.rest.chars().next().map_or(0, char::len_utf8),
            word => word,
        };
        &self.rest[..length]
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.rest = &self.rest[token.len()..];
        token
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        match self.next() {
            token if token == wanted => Ok(()),
            "" => Err(format!("'{wanted}' is missing at the end")),
            token => Err(format!("'{wanted}' is missing in front of '{token}'")),
        }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.next() {
            token if is_name(token) => Ok(token.into()),
            "" => Err("a name is missing at the end".into()),
            token => Err(format!("'{token}' is no name")),
        }
    }

    fn number(&mut self) -> Result<u64, String> {
        let token = self.next();
        crate::reply::number(token).map_err(|_| format!("'{token}' is no number"))
    }

    fn unary(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("no more than {DEEPEST} within each other"));
        }
        let result = match self.peek() {
            "*" => {
                self.next();
                Expression::Target(Box::new(self.unary()?))
            }
            "&" => {
                self.next();
                Expression::Address(Box::new(self.unary()?))
            }
            _ => self.cast_or_postfix()?,
        };
        self.depth -= 1;
        Ok(result)
    }

    /// `(TYPE *)` in front of something, or something.
    fn cast_or_postfix(&mut self) -> Result<Expression, String> {
        let before = self.rest;
        if self.peek() == "(" {
            self.next();
            if let Ok((to, stars)) = self.type_in_cast() {
                return Ok(Expression::Cast { to, stars, what: Box::new(self.unary()?) });
            }
            self.rest = before;
        }
        self.postfix()
    }

    /// Names and stars up to a closing bracket; one name without a star is a type where something stands behind it.
    fn type_in_cast(&mut self) -> Result<(TypeName, u32), String> {
        let to = self.type_name()?;
        let stars = self.stars();
        self.expect(")")?;
        let is_type = stars > 0 || to.words.len() > 1 || {
            let next = self.peek();
            is_name(next) || next.starts_with(|c: char| c.is_ascii_digit()) || matches!(next, "(" | "*" | "&")
        };
        if is_type { Ok((to, stars)) } else { Err("it is no type".into()) }
    }

    fn type_name(&mut self) -> Result<TypeName, String> {
        let mut name = TypeName::default();
        let first = self.name()?;
        if self.peek() == ":" {
            self.next();
            (name.module, name.words) = (Some(first), vec![self.name()?]);
        } else {
            name.words.push(first);
        }
        while is_name(self.peek()) {
            name.words.push(self.name()?);
        }
        if self.peek() == "#" {
            self.next();
            name.which = Some(self.number()?);
        }
        Ok(name)
    }

    fn stars(&mut self) -> u32 {
        let mut stars = 0;
        while self.peek() == "*" {
            self.next();
            stars += 1;
        }
        stars
    }

    fn postfix(&mut self) -> Result<Expression, String> {
        let mut so_far = self.primary()?;
        for _ in 0..DEEPEST {
            let inner = Box::new(so_far);
            so_far = match self.peek() {
                "." | "->" => {
                    self.next();
                    Expression::Member(inner, self.name()?)
                }
                "[" => {
                    self.next();
                    let index = self.number()?;
                    self.expect("]")?;
                    Expression::Element(inner, index)
                }
                _ => return Ok(*inner),
            };
        }
        Err(format!("no more than {DEEPEST} behind each other"))
    }

    fn primary(&mut self) -> Result<Expression, String> {
        match self.peek() {
            "(" => {
                self.next();
                let inner = self.unary()?;
                self.expect(")")?;
                Ok(inner)
            }
            token if token.starts_with(|c: char| c.is_ascii_digit()) => self.number().map(Expression::Number),
            _ => {
                let name = self.name()?;
                match (&*name, self.peek()) {
                    ("per_cpu", "(") => {
                        self.next();
                        let symbol = self.name()?;
                        self.expect(",")?;
                        let cpu = self.number()?;
                        self.expect(")")?;
                        Ok(Expression::PerCpu(symbol, cpu))
                    }
                    ("list", "(") => {
                        self.next();
                        let head = Box::new(self.unary()?);
                        self.expect(",")?;
                        let of = self.type_name()?;
                        self.expect(",")?;
                        let mut member = self.name()?;
                        while self.peek() == "." {
                            self.next();
                            member = format!("{member}.{}", self.name()?);
                        }
                        self.expect(")")?;
                        Ok(Expression::List { head, of, member })
                    }
                    _ => Ok(Expression::Symbol(name)),
                }
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}
