%%% The native library: stubs, specs and -on_load, nothing else.
%%%
%%% Only py, py_reactor_context, the acceptor and the application's start call it.
-module(py_nif).

%% Python: interpreter, calls, log
-export([start_python/4, start_calls/1, stop_calls/0]).
-export([submit/1, cast/1, cancel/1]).
-export([log_register/0, log_taken/1]).

%% Functions: Erlang from Python
-export([functions_serve/0, functions_set/1, function_begin/1, function_answer/2]).

%% Reactor: contexts and connections
-export([context_start/2, context_stop/1, context_interrupt/1, context_running/1]).
-export([context_busy_ms/1, context_stats/1]).
-export([handoff/4, ready/2]).

-on_load(load/0).

-export_type([ticket/0, work/0, failure/0, function_call/0, answer/0, context/0, connection/0]).

-type ticket() :: reference().
-type work() ::
    {exec, Code :: binary()}
    | {eval, Expression :: binary(), Locals :: map()}
    | {call, Module :: binary(), Function :: binary(), Args :: list(), Kwargs :: map()}.
-type function_call() :: reference().
-type answer() ::
    {ok, Result :: term()}
    | {unknown, Text :: binary()}
    | {bad_arity, Text :: binary()}
    | {raised, {error | exit | throw, Reason :: term(), Text :: binary(), Stacktrace :: binary()}}.
-type context() :: reference().
-type connection() :: reference().
-type failure() :: {Class :: binary(), Message :: binary(), Traceback :: binary()}.

%%--------------------------------------------------------------------------------------------------
%% Python: interpreter, calls, log

%% Starts Python, or sets up a running one again. An empty program is that of the build.
-spec start_python(binary(), binary(), [binary()], binary()) -> ok | {error, binary()}.
start_python(_Program, _PackagePath, _PythonPath, _LogLevel) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec start_calls(pos_integer()) -> ok | {error, binary()}.
start_calls(_Threads) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% What waits is answered {error, stopped}, what runs is interrupted.
-spec stop_calls() -> ok.
stop_calls() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The answer comes as the message {Ticket, Answer}.
-spec submit(work()) -> {ok, ticket()} | {error, overload | not_running | failure()}.
submit(_Work) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec cast(work()) -> ok | {error, overload | not_running | failure()}.
cast(_Work) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% True if no answer was sent and none will be; false if the message is there or on its way.
-spec cancel(ticket()) -> boolean().
cancel(_Ticket) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The calling process gets {py_log, Level, Text, Metadata} and must acknowledge with log_taken/1.
-spec log_register() -> ok.
log_register() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Returns how many lines were dropped since the last time.
-spec log_taken(pos_integer()) -> Dropped :: non_neg_integer().
log_taken(_Count) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Functions: Erlang from Python

%% The calling process gets {py_function, Call} for each call, and {py_function_over, Pid} when nobody
%% waits any more for the process that began it.
-spec functions_serve() -> ok.
functions_serve() ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% These names, and no others, can be imported.
-spec functions_set(Names :: [binary()]) -> ok.
functions_set(_Names) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% The calling process is that of the call. Abandoned if nobody waits for an answer.
-spec function_begin(function_call()) -> {Name :: binary(), Args :: list()} | abandoned.
function_begin(_Call) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Whether somebody still waited for it: only the first answer counts.
-spec function_answer(function_call(), answer()) -> boolean().
function_answer(_Call, _Answer) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Reactor: contexts and connections

%% Starts the worker of the calling process, which gets {py_worker, started} or
%% {py_worker, {failed, Text}}. A negative linger means: never park.
-spec context_start(MaxConnections :: pos_integer(), LingerMs :: integer()) ->
    {ok, context()} | {error, binary()}.
context_start(_MaxConnections, _LingerMs) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% When everything is closed the process gets {py_worker, stopped}.
-spec context_stop(context()) -> ok.
context_stop(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Raises erlang.Interrupted in the callback that is running, if there is one.
-spec context_interrupt(context()) -> ok.
context_interrupt(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec context_running(context()) -> boolean().
context_running(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% For how long the present turn of the worker has been going on; 0 while it sleeps.
-spec context_busy_ms(context()) -> non_neg_integer().
context_busy_ms(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

-spec context_stats(context()) -> #{atom() => non_neg_integer()}.
context_stats(_Context) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Duplicates the descriptor. The answer comes as the message {Ticket, ok | {error, Reason}}.
-spec handoff(context(), Fd :: integer(), Info :: map(), Nodelay :: boolean()) ->
    {ok, ticket()} | {error, py_reactor_context:reason()}.
handoff(_Context, _Fd, _Info, _Nodelay) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%% Tells the worker of a parked connection what enif_select said. False if it is no connection.
-spec ready(connection(), ready_input | ready_output) -> boolean().
ready(_Connection, _Readiness) ->
    erlang:nif_error({not_loaded, ?MODULE}).

%%--------------------------------------------------------------------------------------------------
%% Loading

-spec load() -> ok | {error, term()}.
load() ->
    erlang:load_nif(filename:join(priv_dir(), "py_nif"), 0).

%% Without the application's folder on the code path, priv is beside the folder of this module.
priv_dir() ->
    case code:priv_dir(py_reactor) of
        {error, bad_name} ->
            filename:join([filename:dirname(code:which(?MODULE)), "..", "priv"]);
        Dir ->
            Dir
    end.
