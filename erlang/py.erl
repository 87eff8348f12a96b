%%% Python from Erlang, and functions of Erlang for Python.
%%%
%%% The code runs on threads of its own, never on a scheduler. The caller waits; when it stops
%%% waiting, because of a timeout or because it dies, the Python code is interrupted.
-module(py).

%% API
-export([exec/1]).
-export([eval/1, eval/2, eval/3]).
-export([call/3, call/4, call/5]).
-export([cast/3]).
-export([add_path/1]).
-export([version/0]).
-export([register_function/2, unregister_function/1, functions/0]).

-export_type([name/0, value/0, failure/0, reason/0, register_reason/0]).

-type name() :: atom() | binary() | string().
%% A module or a function; a function may have a dotted name.

-type value() :: term().
%% A term that Python can have: see the table of conversions.

-type failure() :: {Class :: binary(), Message :: binary(), Traceback :: binary()}.
%% A Python exception.

-type register_reason() :: {bad_name, Explanation :: binary()} | not_running.
%% Why a function was not registered.

-type reason() :: failure() | timeout | overload | not_running | stopped.

%% @doc Runs statements in Python's `__main__'. Their common indentation is taken off.
-spec exec(Code :: unicode:chardata()) -> ok | {error, reason()}.
exec(Code) ->
    run({exec, text(Code)}, infinity).

%% @equiv eval(Expression, #{}, infinity)
-spec eval(Expression :: unicode:chardata()) -> {ok, value()} | {error, reason()}.
eval(Expression) ->
    eval(Expression, #{}, infinity).

%% @equiv eval(Expression, Locals, infinity)
-spec eval(Expression :: unicode:chardata(), Locals :: #{name() => value()}) ->
    {ok, value()} | {error, reason()}.
eval(Expression, Locals) ->
    eval(Expression, Locals, infinity).

%% @doc Evaluates an expression in `__main__'. `Locals' are more names that it may use.
-spec eval(unicode:chardata(), #{name() => value()}, timeout()) ->
    {ok, value()} | {error, reason()}.
eval(Expression, Locals, TimeoutMs) when is_map(Locals) ->
    run({eval, text(Expression), Locals}, TimeoutMs);
eval(_Expression, _Locals, _TimeoutMs) ->
    error(badarg).

%% @equiv call(Module, Function, Args, #{}, infinity)
-spec call(Module :: name(), Function :: name(), Args :: [value()]) ->
    {ok, value()} | {error, reason()}.
call(Module, Function, Args) ->
    call(Module, Function, Args, #{}, infinity).

%% @equiv call(Module, Function, Args, Kwargs, infinity)
-spec call(Module :: name(), Function :: name(), Args :: [value()], Kwargs :: #{name() => value()}) ->
    {ok, value()} | {error, reason()}.
call(Module, Function, Args, Kwargs) ->
    call(Module, Function, Args, Kwargs, infinity).

%% @doc Calls a function of a Python module, which is imported if need be.
%%
%% After `TimeoutMs' milliseconds the answer is `{error, timeout}', and the exception
%% `erlang.Interrupted' is raised in the Python code. Code that waits in C, as in `time.sleep', gets
%% it only when it comes back from there.
-spec call(name(), name(), [value()], #{name() => value()}, timeout()) ->
    {ok, value()} | {error, reason()}.
call(Module, Function, Args, Kwargs, TimeoutMs) when length(Args) >= 0, is_map(Kwargs) ->
    run({call, name(Module), name(Function), Args, Kwargs}, TimeoutMs);
call(_Module, _Function, _Args, _Kwargs, _TimeoutMs) ->
    error(badarg).

%% @doc Calls a function and does not wait. If it fails, that is logged.
-spec cast(Module :: name(), Function :: name(), Args :: [value()]) -> ok | {error, reason()}.
cast(Module, Function, Args) when length(Args) >= 0 ->
    py_nif:cast({call, name(Module), name(Function), Args, #{}});
cast(_Module, _Function, _Args) ->
    error(badarg).

%% @doc Puts a folder before the others on Python's `sys.path', unless it is there.
-spec add_path(file:filename_all()) -> ok | {error, reason()}.
add_path(Folder) ->
    Path = text(filename:absname(Folder)),
    done(call('erlang._start', add_path, [Path])).

%% @doc The version of the Python that runs, like `<<"3.11.7">>'.
-spec version() -> {ok, binary()} | {error, reason()}.
version() ->
    call(platform, python_version, []).

done({ok, none}) -> ok;
done({error, _} = Error) -> Error.

%% @doc Makes an Erlang function known to Python, where `erlang.call(name, *args)' calls it, and
%% `from erlang import name' imports it. Another one of that name is replaced.
%%
%% Each call runs in a process of its own. The function is applied to the arguments: it has as many
%% parameters as Python has to give arguments. `{Module, Function}' may have several arities.
%%
%% The name must be an identifier of Python and none that the package `erlang' has. The function stays
%% registered until the application stops, whatever becomes of the process that has registered it.
-spec register_function(name(), py_reactor_functions:target()) -> ok | {error, register_reason()}.
register_function(Name, Function) when is_function(Function) ->
    py_reactor_functions:register(text(name(Name)), Function);
register_function(Name, {Module, Function}) when is_atom(Module), is_atom(Function) ->
    py_reactor_functions:register(text(name(Name)), {Module, Function});
register_function(_Name, _Function) ->
    error(badarg).

%% @doc Takes a function away from Python. Calls of it that run go on to their end.
-spec unregister_function(name()) -> ok | {error, unknown_function | not_running}.
unregister_function(Name) ->
    py_reactor_functions:unregister(text(name(Name))).

%% @doc The names of the functions that Python can call, sorted.
-spec functions() -> [binary()].
functions() ->
    py_reactor_functions:names().

%%--------------------------------------------------------------------------------------------------

run(_Work, TimeoutMs) when TimeoutMs =/= infinity, not (is_integer(TimeoutMs) andalso TimeoutMs >= 0) ->
    error(badarg);
run(Work, TimeoutMs) ->
    case py_nif:submit(Work) of
        {ok, Ticket} -> wait(Ticket, TimeoutMs);
        {error, _} = Error -> Error
    end.

wait(Ticket, TimeoutMs) ->
    receive
        {Ticket, Answer} -> Answer
    after TimeoutMs ->
        case py_nif:cancel(Ticket) of
            true -> {error, timeout};
            false -> late_answer(Ticket)
        end
    end.

%% The answer was sent before the ticket could be taken back, so the message is certain to come.
%% The code has run to its end: what it gave is more use to the caller than a timeout.
late_answer(Ticket) ->
    receive
        {Ticket, Answer} -> Answer
    end.

text(Chars) ->
    case unicode:characters_to_binary(Chars) of
        Text when is_binary(Text) -> Text;
        _ -> error(badarg)
    end.

name(Name) when is_atom(Name) -> atom_to_binary(Name);
name(Name) when is_binary(Name) -> Name;
name([_ | _] = Name) -> text(Name);
name(_) -> error(badarg).
